"""Reading telemetry back over the API."""

from __future__ import annotations

from typing import Any

from tests.integration.http.house import House

BASE = "/api/v1/devices/fridge-7/telemetry"
START = 1_764_000_000


async def fill(house: House, count: int) -> None:
    for first in range(0, count, 100):
        batch = ",".join(f'{{"ts": {START + n}, "t": {n}}}' for n in range(first, min(first + 100, count)))
        await house.receive("devices/fridge-7/telemetry", f"[{batch}]".encode())


async def get(house: House, path: str, **query: Any) -> Any:
    answer = await house.client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_pages_of_readings_hold_each_once(open_house: House) -> None:
    await fill(open_house, 250)
    await open_house.receive("devices/fridge-7/telemetry", b'{"ts": %d, "t": -1}' % START)  # the same time again
    seen, after = [], ""
    for _ in range(4):
        page = await get(open_house, BASE, limit=84, after=after)
        seen += [reading["values"]["t"] for reading in page["readings"]]
        after = page["next"] or ""
        if not after:
            break
    assert seen[:-2] == list(range(249, 0, -1))
    assert sorted(seen[-2:]) == [-1, 0]
    some = await get(open_house, BASE, since=START + 10, until="2025-11-24T16:00:12Z")
    assert [reading["values"]["t"] for reading in some["readings"]] == [11, 10]


async def test_a_field_over_time(open_house: House) -> None:
    await fill(open_house, 300)
    few = await get(open_house, f"{BASE}/series", field="t", since=START, until=START + 3)
    assert (few["ts"], few["last"], few["step"]) == ([START, START + 1, START + 2], [0, 1, 2], 0)
    many = await get(open_house, f"{BASE}/series", field="t", since=START, until=START + 300, points=6)
    assert (many["step"], many["min"]) == (50, [0, 50, 100, 150, 200, 250])
    assert (many["max"], many["count"]) == ([49, 99, 149, 199, 249, 299], [50] * 6)
    latest = await get(open_house, f"{BASE}/latest")
    assert latest["streams"]["default"]["values"]["t"] == 299


async def test_what_cannot_be_asked_for_says_why(open_house: House) -> None:
    for path, query in (
        (BASE, {"after": "1.0.0~1"}),
        (BASE, {"after": "1e999~1"}),
        (BASE, {"since": "yesterday"}),
        (BASE, {"since": "nan"}),
        (BASE, {"since": "2026-01-01T00:00:00"}),
        (BASE, {"stream": "a/b"}),
        (f"{BASE}/series", {}),
        (f"{BASE}/series", {"field": "/"}),
        (f"{BASE}/series", {"field": "t", "since": "5", "until": "5"}),
        (f"{BASE}/series", {"field": "t", "points": "1"}),
    ):
        answer = await open_house.client.get(path, params=query)
        assert answer.status_code == 422, (path, query, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
    assert (await open_house.client.get("/api/v1/devices/nobody/telemetry/latest")).status_code == 404


async def test_a_payload_that_nobody_can_read_hides_no_other(open_house: House) -> None:
    for payload in ('{"a": 1}', '{"a": "\\ud800"}', '{"a": 1e999}', '{"a": ' + "9" * 5000 + "}", "[" * 300 + "]" * 300):
        await open_house.receive("devices/fridge-7/telemetry", payload.encode())
        for path in (BASE, f"{BASE}/latest", "/api/v1/devices", "/api/v1/devices/fridge-7"):
            await get(open_house, path)


async def test_what_devices_send_is_json_and_nothing_else(open_house: House) -> None:
    """A browser that is shown an answer must not find a page in it."""
    script = b'{"<script>alert(1)</script>": "<img src=x onerror=alert(1)>"}'
    await open_house.receive("devices/fridge-7/telemetry", script)
    await open_house.receive("devices/fridge-7/telemetry", b"<script>alert(1)</script>")
    for path in (BASE, f"{BASE}/latest", "/api/v1/devices/fridge-7", "/api/v1/dead-letters"):
        answer = await open_house.client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "<script>" in answer.text
    refused = await open_house.client.get("/api/v1/devices/<script>alert(1)<script>")
    assert refused.status_code == 422
    assert refused.headers["content-type"] == "application/problem+json"
