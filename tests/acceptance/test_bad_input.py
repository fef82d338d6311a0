"""Bad input has a defined end (P3): a dead letter with its reason or a closed connection, a line in the log,
one count in the ledger; and the next good message from the same device is stored."""

from __future__ import annotations

import pytest

from tests.acceptance.clients import RawClient
from tests.acceptance.process import BridgeProcess

DEVICE = "fridge-7"
TELEMETRY = b"devices/fridge-7/telemetry"

DEAD_LETTERS = {
    "not JSON": (TELEMETRY, b"4.2 degrees", "not_json"),
    "half a JSON object": (TELEMETRY, b'{"temperature": 4.', "not_json"),
    "NaN": (TELEMETRY, b'{"temperature": NaN}', "not_json"),
    "empty": (TELEMETRY, b"", "not_json"),
    "invalid UTF-8": (TELEMETRY, b'{"temperature": "\xff\xfe"}', "not_utf8"),
    "a number": (TELEMETRY, b"4.2", "wrong_type"),
    "a time of the wrong type": (TELEMETRY, b'{"ts": [2026], "temperature": 4.2}', "wrong_type"),
    "nested too deeply": (TELEMETRY, b'{"a":' * 20_000 + b"1" + b"}" * 20_000, "too_deep"),
    "the year 40000": (TELEMETRY, b'{"ts": 1200125894400, "temperature": 4.2}', "bad_time"),
    "the year 40000, written out": (TELEMETRY, b'{"ts": "40000-01-01T00:00:00Z"}', "bad_time"),
    "an impossible device id": (b"devices/fridge 7/telemetry", b'{"temperature": 4.2}', "bad_device_id"),
    "a device id too long": (
        b"devices/" + b"x" * 65 + b"/telemetry",
        b'{"temperature": 4.2}',
        "bad_device_id",
    ),
    "60 levels": (TELEMETRY + b"/x" * 57, b'{"temperature": 4.2}', "too_many_levels"),
    "a command without a name": (b"devices/fridge-7/command", b'{"args": {}}', "bad_command"),
    "a pong that is none": (b"devices/fridge-7/pong", b"[]", "bad_pong"),
}

CLOSED = {
    "10 MB": (TELEMETRY, b'{"a": "' + b"x" * 10_000_000 + b'"}'),
    "invalid UTF-8 in the topic [MQTT-1.5.3-1]": (b"devices/\xff\xfe/telemetry", b"{}"),
    "NUL in the topic [MQTT-1.5.3-2]": (b"devices/fridge\0/telemetry", b"{}"),
    "a wildcard in the topic [MQTT-3.3.2-2]": (b"devices/+/telemetry", b"{}"),
    "an empty topic [MQTT-4.7.3-1]": (b"", b"{}"),
    "60 levels of an ordinary topic": (b"a" + b"/x" * 59, b"{}"),
}


def store_one(bridge: BridgeProcess) -> None:
    """The device's next good message is stored as if nothing had been."""
    with RawClient(bridge, "good") as client:
        client.publish(TELEMETRY, b'{"id": "good", "temperature": 4.2}')
        assert client.outcome() == "acknowledged"
    assert bridge.stored_ids() == {"good"}


@pytest.mark.parametrize("case", DEAD_LETTERS)
def test_becomes_a_dead_letter(bridge: BridgeProcess, case: str) -> None:
    topic, payload, reason = DEAD_LETTERS[case]
    with RawClient(bridge, "bad") as client:
        client.publish(topic, payload)
        assert client.outcome() == "acknowledged"
        # The connection is as good as before.
        client.publish(TELEMETRY, b'{"id": "same connection", "temperature": 4.2}', packet_id=2)
        assert client.outcome(packet_id=2) == "acknowledged"

    letters = bridge.rows("SELECT topic, reason, error, payload, size FROM dead_letters")
    assert len(letters) == 1
    assert letters[0][:2] == (topic.decode(), reason)
    assert letters[0][2], "the letter does not say what exactly was wrong"
    assert bytes(letters[0][3]) == payload[:65536]
    assert letters[0][4] == len(payload)
    assert bridge.stored_ids() == {"same connection"}

    ledger = bridge.settled_ledger()
    assert (ledger["received"], ledger["dead_lettered"], ledger["committed"]) == (2, 1, 1)
    lines = [line for line in bridge.output().splitlines() if reason in line]
    assert len(lines) == 1, "one message, one line in the log"


@pytest.mark.parametrize("case", CLOSED)
def test_closes_the_connection(bridge: BridgeProcess, case: str) -> None:
    topic, payload = CLOSED[case]
    before = len(bridge.output())
    with RawClient(bridge, "bad") as client:
        client.publish(topic, payload)
        assert client.outcome() == "closed"
    assert bridge.rows("SELECT count(*) FROM dead_letters") == [(0,)]
    assert "bad" in bridge.output()[before:], "no line in the log says whose connection was closed"
    store_one(bridge)
    assert bridge.settled_ledger()["received"] == 1, "what closes the connection was never received"


def test_a_dead_letter_is_listed_by_the_command_line(bridge: BridgeProcess) -> None:
    with RawClient(bridge, "bad") as client:
        client.publish(TELEMETRY, b"4.2 degrees")
        assert client.outcome() == "acknowledged"
    listed = bridge.run("deadletters")
    assert listed.returncode == 0, listed.stderr
    assert "not_json" in listed.stdout
    assert DEVICE in listed.stdout
