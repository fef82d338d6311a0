"""Tokens as the operator meets them: shown once at the first start, made and ended on the command line."""

from __future__ import annotations

import re

import httpx

from tests.acceptance.conftest import MakeBridge
from tests.acceptance.process import BridgeProcess
from tests.waiting import until


def good(bridge: BridgeProcess, token: str) -> bool:
    """Whether the API takes the token."""
    answer = httpx.get(
        bridge.url("/api/v1/devices"), headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=10
    )
    assert answer.status_code in (200, 401)
    return answer.status_code == 200


def test_the_first_token_is_shown_once_and_others_are_made_beside_the_running_bridge(make_bridge: MakeBridge) -> None:
    # Asked again and again whether it knows a token yet, it must not take that for guessing.
    bridge = make_bridge(BRIDGE_HTTP__REQUIRE_TOKEN="true", BRIDGE_HTTP__MAX_FAILED_LOGINS="100000").start()
    shown = until(lambda: re.search(r"shown this once: (\S+)", bridge.output()), "the admin token")
    assert shown is not None
    admin = bridge.token = bridge.environment["BRIDGE_TOKEN"] = shown.group(1)
    assert good(bridge, admin)
    assert not good(bridge, "wrong")
    assert bridge.run("devices").returncode == 0

    made = bridge.run("tokens", "add", "dashboard", "--role", "viewer")
    assert made.returncode == 0, made.stderr
    viewer = made.stdout.strip()
    until(lambda: good(bridge, viewer), "the running bridge to know the new token")
    listed = bridge.run("tokens", "list").stdout
    assert "dashboard" in listed
    assert viewer not in listed
    again = bridge.run("tokens", "add", "dashboard")
    assert again.returncode == 1
    assert "choose another name" in again.stderr

    assert bridge.run("tokens", "revoke", "dashboard").returncode == 0
    until(lambda: not good(bridge, viewer), "the running bridge to know that it is revoked")
    who = [(line["who"], line["action"]) for line in bridge.get("/api/v1/audit")["audit"]]
    assert who == [("command line", "tokens revoke"), ("command line", "tokens add")]

    assert bridge.terminate() == 0
    bridge.start()
    assert bridge.output().count("shown this once") == 1
    assert good(bridge, admin)
    assert not bridge.rows("SELECT 1 FROM tokens WHERE instr(digest, ?)", admin)
