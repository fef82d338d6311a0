"""Who may do what, and what a web page of another site cannot make a browser do."""

from __future__ import annotations

import json
from pathlib import Path

import aiomqtt
import httpx
import pytest
from structlog.testing import capture_logs

from bridge.receipts import Ledger
from bridge.storage import tokens as stored
from bridge.tokens import PREFIX, Role, digest
from tests.integration.http.house import House, house

COMMAND = {"name": "reboot", "id": "once"}
SEND = "/api/v1/devices/fridge-7/commands"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def token_of(house: House, role: Role) -> str:
    """A token of that role, made by the admin's first one."""
    assert house.bridge.first_token is not None
    made = await house.client.post(
        "/api/v1/tokens", json={"name": f"a-{role}", "role": role}, headers=bearer(house.bridge.first_token)
    )
    assert made.status_code == 201, made.text
    token: str = made.json()["token"]
    return token


async def test_on_loopback_everybody_may_do_everything(open_house: House) -> None:
    assert open_house.bridge.first_token is None
    session = (await open_house.client.get("/api/v1/session")).json()
    assert session == {"name": "local", "role": "admin", "token_required": False, "expires_at": None}
    assert (await open_house.client.post(SEND, json=COMMAND)).status_code == 202
    assert (await open_house.client.get("/api/v1/tokens")).json() == {"tokens": []}


async def test_the_first_start_makes_an_admin_token_and_no_later_one_does(url: str, tmp_path: Path) -> None:
    async with house(url, tmp_path, require_token=True) as first:
        secret = first.bridge.first_token
        assert secret is not None
        assert secret.startswith(PREFIX)
        (token,) = await first.bridge.database.read(stored.list_tokens)
        assert (token.name, token.role, token.digest) == ("admin", Role.ADMIN, digest(secret))
    async with house(url, tmp_path, require_token=True) as second:
        assert second.bridge.first_token is None
        assert (await second.client.get("/api/v1/tokens", headers=bearer(secret))).status_code == 200
        assert (await second.client.delete("/api/v1/tokens/admin", headers=bearer(secret))).status_code == 204
    async with house(url, tmp_path, require_token=True) as third:
        assert third.bridge.first_token is not None, "with the last admin revoked nobody could ever log in again"
    async with house(url, tmp_path, token="from the settings") as fixed:
        assert fixed.bridge.first_token is None
        assert (await fixed.client.get("/api/v1/tokens", headers=bearer("from the settings"))).status_code == 200


async def test_roles(locked_house: House) -> None:
    client = locked_house.client
    viewer, operator = await token_of(locked_house, Role.VIEWER), await token_of(locked_house, Role.OPERATOR)
    allowed = {
        (method, path): [
            (await client.request(method, path, json=body, headers=headers)).status_code
            for headers in ({}, bearer(viewer), bearer(operator), bearer(locked_house.bridge.first_token or ""))
        ]
        for method, path, body in (
            ("GET", "/api/v1/devices", None),
            ("POST", SEND, COMMAND),
            ("GET", "/api/v1/tokens", None),
            ("GET", "/api/v1/audit", None),
            ("POST", "/api/v1/tokens", {"name": "x y"}),
            ("GET", "/healthz", None),
            ("GET", "/metrics", None),
        )
    }
    assert allowed == {
        ("GET", "/api/v1/devices"): [401, 200, 200, 200],
        ("POST", SEND): [401, 403, 202, 202],
        ("GET", "/api/v1/tokens"): [401, 403, 403, 200],
        ("GET", "/api/v1/audit"): [401, 403, 403, 200],
        ("POST", "/api/v1/tokens"): [401, 403, 403, 422],
        ("GET", "/healthz"): [200, 200, 200, 200],
        ("GET", "/metrics"): [200, 200, 200, 200],
    }


async def test_a_revoked_token_is_dead_at_once_and_its_sessions_with_it(locked_house: House) -> None:
    viewer = await token_of(locked_house, Role.VIEWER)
    async with locked_house.another() as browser:
        assert (await browser.post("/api/v1/session", json={"token": viewer})).status_code == 200
        assert (await browser.get("/api/v1/devices")).status_code == 200
        admin = bearer(locked_house.bridge.first_token or "")
        assert (await locked_house.client.delete("/api/v1/tokens/a-viewer", headers=admin)).status_code == 204
        assert (await browser.get("/api/v1/devices")).status_code == 401
    assert (await locked_house.client.get("/api/v1/devices", headers=bearer(viewer))).status_code == 401


async def test_a_session_is_a_cookie_that_scripts_and_other_sites_do_not_get(locked_house: House) -> None:
    operator = await token_of(locked_house, Role.OPERATOR)
    async with locked_house.another() as browser:
        opened = await browser.post("/api/v1/session", json={"token": operator})
        cookie = opened.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "secure" not in cookie
        assert operator.lower() not in cookie
        assert opened.json()["role"] == "operator"
        assert (await browser.get("/api/v1/session")).json()["name"] == "a-operator"
        # Whatever sends a cookie says in a change where it comes from.
        assert (await browser.post(SEND, json=COMMAND)).status_code == 403
        ours = {"Origin": locked_house.url}
        assert (await browser.post(SEND, json=COMMAND, headers=ours)).status_code == 202
        assert (await browser.post(SEND, json=COMMAND, headers={"Sec-Fetch-Site": "same-origin"})).status_code == 202
        assert (await browser.delete("/api/v1/session", headers=ours)).status_code == 204
        assert (await browser.get("/api/v1/devices")).status_code == 401
    async with locked_house.another(x_forwarded_proto="https") as browser:
        opened = await browser.post("/api/v1/session", json={"token": operator})
        assert "secure" in opened.headers["set-cookie"].lower()


CROSS_SITE: tuple[tuple[dict[str, str], int], ...] = (
    ({"Host": "evil.example"}, 421),
    ({"Host": "evil.example:8080"}, 421),
    ({"Host": "127.0.0.1.evil.example"}, 421),
    ({"Host": "localhost@evil.example"}, 421),
    ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-site"}, 403),
    ({"Content-Type": "text/plain"}, 415),
    ({"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}, 415),
    ({"Content-Type": ""}, 422),
    ({}, 202),
    ({"Host": "localhost:8080"}, 202),
    ({"Host": "[::1]:8080"}, 202),
    ({"Sec-Fetch-Site": "same-origin"}, 202),
)


async def test_a_page_of_another_site_cannot_drive_an_open_bridge(open_house: House) -> None:
    """Without a token nothing else stands between the operator's browser and the devices."""
    body = b'{"name": "reboot", "id": "once"}'
    sent = 0
    for headers, status in CROSS_SITE:
        headers = {"Content-Type": "application/json", **headers}
        answer = await open_house.client.post(SEND, content=body, headers=headers)
        assert answer.status_code == status, (headers, answer.text)
        sent += status == 202
        if status != 202:
            assert answer.headers["content-type"] == "application/problem+json"
        await open_house.committed()
        assert len((await open_house.client.get("/api/v1/audit")).json()["audit"]) == sent


async def test_another_page_may_link_to_the_bridge_but_not_read_from_it(open_house: House) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert (await open_house.client.get("/api/v1/summary", headers=link)).status_code == 200
    load = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert (await open_house.client.get("/api/v1/summary", headers=load)).status_code == 403


async def test_names_that_are_set_are_ours(url: str, tmp_path: Path) -> None:
    async with house(url, tmp_path, require_token=True, hosts=("bridge.example.com",)) as named:
        for host, status in (("bridge.example.com", 200), ("other.example.com", 421), ("127.0.0.1", 200)):
            assert (await named.client.get("/healthz", headers={"Host": host})).status_code == status


async def test_too_many_wrong_tokens_lock_an_address_out_but_not_its_sessions(url: str, tmp_path: Path) -> None:
    async with house(url, tmp_path, require_token=True, max_failed_logins=3) as locked:
        good = locked.bridge.first_token or ""
        async with locked.another() as browser:
            await browser.post("/api/v1/session", json={"token": good})
            answers = [await locked.client.get("/api/v1/devices", headers=bearer("wrong")) for _ in range(4)]
            assert [answer.status_code for answer in answers] == [401, 401, 401, 429]
            assert int(answers[-1].headers["retry-after"]) > 0
            late = await locked.client.post("/api/v1/session", json={"token": good})
            assert late.status_code == 429, "a guess that is right is one guess too many"
            assert (await browser.get("/api/v1/devices")).status_code == 200


async def test_metrics_can_be_closed(url: str, tmp_path: Path) -> None:
    async with house(url, tmp_path, require_token=True, metrics_token=True) as closed:
        assert (await closed.client.get("/metrics")).status_code == 401
        answer = await closed.client.get("/metrics", headers=bearer(closed.bridge.first_token or ""))
        assert answer.status_code == 200
        assert (await closed.client.get("/readyz")).status_code == 200


async def test_the_audit_trail_says_who_did_what(locked_house: House) -> None:
    operator = await token_of(locked_house, Role.OPERATOR)
    await locked_house.client.post(SEND, json=COMMAND, headers=bearer(operator))
    await locked_house.client.post(SEND, json={"name": ""}, headers=bearer(operator))
    await locked_house.client.get("/api/v1/devices", headers=bearer(operator))
    await locked_house.committed()
    admin = bearer(locked_house.bridge.first_token or "")
    lines = (await locked_house.client.get("/api/v1/audit", headers=admin)).json()["audit"]
    assert [(line["who"], line["action"], line["target"]) for line in lines] == [
        ("a-operator", "POST /devices/{device_id}/commands", "fridge-7"),
        ("admin", "POST /tokens", ""),
    ]
    assert lines[0]["address"] == "127.0.0.1"
    assert lines[0]["detail"].startswith("reboot, command ")
    assert lines[1]["detail"] == "a-operator, operator"
    assert operator not in str(lines)


async def test_the_audit_trail_says_who_did_what_by_mqtt(open_house: House) -> None:
    command = json.dumps({"name": "reboot", "id": "once", "args": "secret"})
    async with aiomqtt.Client("127.0.0.1", open_house.bridge.mqtt_port, identifier="desk-2") as operator:
        await operator.publish("devices/fridge-7/telemetry", "{}", qos=1)
        for _ in range(2):
            await operator.publish("devices/fridge-7/command", command, qos=1)
            await operator.publish("devices/fridge-7/state/desired", '{"led": "secret"}', qos=1)
        await operator.publish("devices/fridge-7/command", "no command", qos=1)
    (sent,) = (await open_house.client.get("/api/v1/commands")).json()["commands"]
    lines = (await open_house.client.get("/api/v1/audit")).json()["audit"]
    assert {(line["who"], line["address"]) for line in lines} == {("anonymous", "127.0.0.1 client desk-2")}
    assert [(line["action"], line["target"], line["detail"]) for line in lines] == [
        ("MQTT desired", "fridge-7", "version 1"),
        ("MQTT command", "fridge-7", f"reboot, command {sent['command_id']}"),
    ], "a change that was made, once, and nothing of what was in it"


async def test_the_audit_trail_is_bounded(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.storage.audit.FORGET_EVERY", 1)
    async with house(url, tmp_path, audit_lines=2) as bounded:
        for number in range(4):
            await bounded.client.post("/api/v1/tokens", json={"name": f"t{number}"})
        await bounded.committed()
        first = (await bounded.client.get("/api/v1/audit?limit=1")).json()
        assert first["audit"][0]["target"] == ""
        second = (await bounded.client.get(f"/api/v1/audit?before={first['next']}")).json()
        assert len(second["audit"]) == 1
        assert second["next"] is None


async def test_every_answer_carries_the_headers(open_house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_ledger: Ledger) -> dict[str, int]:
        raise RuntimeError("as it should not be")

    answers: dict[int, httpx.Response] = {}
    for method, path in (
        ("GET", "/healthz"),
        ("GET", "/nothing/here"),
        ("DELETE", "/api/v1/summary"),
        ("GET", "/api/v1/devices?limit=0"),
        ("GET", "/api/v1/devices?after=%00"),
    ):
        answer = await open_house.client.request(method, path)
        answers[answer.status_code] = answer
    with monkeypatch.context() as patched, capture_logs() as logged:
        patched.setattr(Ledger, "as_dict", broken)
        failed = await open_house.client.get("/api/v1/ledger")
    assert [line["event"] for line in logged] == ["a request failed"]
    answers[failed.status_code] = failed
    assert sorted(answers) == [200, 400, 404, 405, 422, 500]
    for status, answer in answers.items():
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        if status >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["status"] == status
            assert "RuntimeError" not in answer.text
    assert "GET" in answers[405].headers["allow"]
