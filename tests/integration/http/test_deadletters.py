"""What was refused: list it, hand it in again, throw it away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bridge.tokens import Role
from tests.integration.http.house import House, house
from tests.integration.http.test_access import bearer, token_of
from tests.integration.sinks.receiver import Receiver
from tests.waiting import eventually

LETTERS = "/api/v1/dead-letters"


async def listed(house: House, **query: Any) -> list[Any]:
    """All letters that fit, two a page."""
    found: list[Any] = []
    before: dict[str, int] = {}
    while True:
        page = (await house.client.get(LETTERS, params={"limit": 2, **query, **before})).json()
        found += page["dead_letters"]
        if page["next"] is None:
            return found
        before = {"before": page["next"]}


async def refuse(house: House, *devices: str) -> None:
    for device in devices:
        await house.receive(f"devices/{device}/telemetry", b"not json")


async def test_letters_are_listed_by_reason_and_device(open_house: House) -> None:
    await refuse(open_house, "a", "b", "a")
    await open_house.receive("devices/a/telemetry", b"\xff" * 10_000)
    letters = await listed(open_house)
    assert [letter["device_id"] for letter in letters] == ["a", "a", "b", "a"]
    assert len(letters[0]["payload"]) == 4 * 4096
    assert letters[0]["size"] == 10_000
    whole = (await open_house.client.get(f"{LETTERS}/{letters[0]['id']}")).json()
    assert len(whole["payload"]) == 4 * 10_000
    assert [letter["device_id"] for letter in await listed(open_house, device="b")] == ["b"]
    reason = letters[-1]["reason"]
    assert len(await listed(open_house, reason=reason)) == len([x for x in letters if x["reason"] == reason])
    assert await listed(open_house, reason="nothing of the kind") == []


async def test_a_letter_that_is_refused_again_is_a_new_one(open_house: House) -> None:
    await refuse(open_house, "a")
    (letter,) = await listed(open_house)
    again = await open_house.client.post(f"{LETTERS}/{letter['id']}/replay")
    assert (again.status_code, again.json()) == (200, {"outcome": "dead_lettered"})
    (new,) = await listed(open_house)
    assert new["id"] > letter["id"]
    assert (await open_house.client.post(f"{LETTERS}/{letter['id']}/replay")).status_code == 404


async def test_many_letters_are_replayed_once_and_what_leads_nowhere_stays(url: str, tmp_path: Path) -> None:
    async with house(url, tmp_path) as first:
        await refuse(first, "a", "b")
        # As if a fix had come: what was refused is good now; and one leads to no agent any more.
        await first.bridge.database.write(_mend)
        ids = sorted(letter["id"] for letter in await listed(first))
        answer = await first.client.post(f"{LETTERS}/{ids[1]}/replay")
        assert answer.status_code == 409
        assert "no_agent" in answer.json()["detail"]
        answer = await first.client.post(f"{LETTERS}/replay", json={"ids": [*ids, 7]})
        assert answer.status_code == 200, answer.text
        result = answer.json()
        assert result["outcomes"] == {"committed": 1, "refused": 1}
        assert [(left["id"], left["reason"]) for left in result["left"]] == [(ids[1], "no_agent")]
        assert result["missing"] == [7]
        latest = (await first.client.get("/api/v1/devices/a/telemetry")).json()
        assert [reading["values"] for reading in latest["readings"]] == [{"t": 1}]
        everything = await first.client.post(f"{LETTERS}/replay", json={"everything": True})
        assert everything.json()["outcomes"] == {"refused": 1}
        assert [letter["id"] for letter in await listed(first)] == [ids[1]]


async def _mend(connection: Any) -> None:
    await connection.exec_driver_sql(
        "UPDATE dead_letters SET payload = CAST('{\"t\": 1}' AS BLOB), size = 8,"
        " topic = CASE device_id WHEN 'a' THEN topic ELSE 'lost/and/found' END"
    )


async def test_a_letter_is_dropped_by_an_operator_and_the_trail_says_which(locked_house: House) -> None:
    viewer, operator = await token_of(locked_house, Role.VIEWER), await token_of(locked_house, Role.OPERATOR)
    await refuse(locked_house, "a")
    (letter,) = (await locked_house.client.get(LETTERS, headers=bearer(viewer))).json()["dead_letters"]
    path = f"{LETTERS}/{letter['id']}"
    assert (await locked_house.client.delete(path, headers=bearer(viewer))).status_code == 403
    assert (await locked_house.client.post(f"{path}/replay", headers=bearer(viewer))).status_code == 403
    assert (await locked_house.client.delete(path, headers=bearer(operator))).status_code == 204
    assert (await locked_house.client.delete(path, headers=bearer(operator))).status_code == 404
    await locked_house.committed()
    admin = bearer(locked_house.bridge.first_token or "")
    line = (await locked_house.client.get("/api/v1/audit", headers=admin)).json()["audit"][0]
    assert (line["who"], line["target"]) == ("a-operator", str(letter["id"]))
    assert "devices/a/telemetry" in line["detail"]


async def test_a_replay_says_which(open_house: House) -> None:
    bodies: tuple[dict[str, Any], ...] = (
        {},
        {"ids": []},
        {"ids": [1], "reason": "x"},
        {"everything": True, "device": "a"},
        {"ids": [-1]},
    )
    for body in bodies:
        assert (await open_house.client.post(f"{LETTERS}/replay", json=body)).status_code == 422, body


async def test_a_sink_is_shown_as_it_gets_on(url: str, tmp_path: Path) -> None:
    with Receiver() as receiver:
        cloud = {"type": "webhook", "url": receiver.url, "wait": 0.05}
        async with house(url, tmp_path, sinks={"cloud": cloud}) as passing:

            async def shown() -> dict[str, Any]:
                (sink,) = (await passing.client.get("/api/v1/sinks")).json()["sinks"]
                return dict(sink)

            (feeder,) = passing.bridge.sinks
            assert (await shown())["name"] == "cloud"
            receiver.answer = lambda _: 503
            await passing.receive("devices/fridge-7/telemetry", b'{"n": 1}')
            await eventually(lambda: feeder.trouble)
            sick = await shown()
            assert sick["retries"] >= 1
            assert sick["delivered"] == 0
            receiver.answer = lambda _: 200
            await eventually(lambda: feeder.delivered)
            well = await shown()
            assert (well["delivered"], well["refused"], well["breaker"]) == (1, 0, "closed")
            assert receiver.values == [1]


async def test_sinks_and_what_stands_between_are_shown(open_house: House) -> None:
    assert (await open_house.client.get("/api/v1/sinks")).json() == {"sinks": []}
    summary = (await open_house.client.get("/api/v1/summary")).json()
    assert summary["database"] == {"dialect": "sqlite", "breaker": "closed"}
    assert (summary["spool"]["waiting"], summary["sinks"]) == (0, [])
