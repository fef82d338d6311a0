"""Bad input has a defined end (P3): a dead letter with its reason or a closed connection, a line in the log,
one count in the ledger; and the next good message from the same device is stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.clients import RawClient
from tests.acceptance.process import BridgeProcess

TELEMETRY = b"devices/fridge-7/telemetry"

DEAD_LETTERS = {
    "not JSON": (TELEMETRY, b"warm", "not_json"),
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


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    """One bridge for all of it: no input here may end it or hold it up."""
    bridge = BridgeProcess(tmp_path_factory.mktemp("bad-input")).start()
    try:
        yield bridge
        bridge.finish()
    finally:
        if bridge.running:
            bridge.kill()
        print(bridge.output()[-8000:])


class Since:
    """What a bridge counted, kept and logged since this was made."""

    def __init__(self, bridge: BridgeProcess) -> None:
        self._bridge = bridge
        self._ledger = bridge.settled_ledger()
        self._output = len(bridge.output())
        (self._letter,) = bridge.rows("SELECT coalesce(max(id), 0) FROM dead_letters")[0]
        self._stored = bridge.stored_ids()

    def counted(self) -> dict[str, int]:
        """The ledger's counters that have moved."""
        now = self._bridge.settled_ledger()
        moved = {name: now[name] - self._ledger[name] for name in now if name != "dropped"}
        assert now["dropped"] == self._ledger["dropped"]
        return {name: count for name, count in moved.items() if count}

    def letters(self) -> list[tuple[Any, ...]]:
        query = "SELECT topic, reason, error, payload, size FROM dead_letters WHERE id > ?"
        return self._bridge.rows(query, self._letter)

    def stored(self) -> set[str]:
        return self._bridge.stored_ids() - self._stored

    def logged(self, word: str) -> list[str]:
        return [line for line in self._bridge.output()[self._output :].splitlines() if word in line]


@pytest.mark.parametrize("case", DEAD_LETTERS)
def test_becomes_a_dead_letter(bridge: BridgeProcess, case: str) -> None:
    topic, payload, reason = DEAD_LETTERS[case]
    since = Since(bridge)
    with RawClient(bridge, "bad") as client:
        client.publish(topic, payload)
        assert client.outcome() == "acknowledged"
        # The connection is as good as before, and so is the device.
        client.publish(TELEMETRY, f'{{"id": "after {case}", "temperature": 4.2}}'.encode(), packet_id=2)
        assert client.outcome(packet_id=2) == "acknowledged"
    assert since.stored() == {f"after {case}"}
    assert since.counted() == {"received": 2, "dead_lettered": 1, "committed": 1}

    (letter,) = since.letters()
    assert letter[:2] == (topic.decode(), reason)
    assert letter[2], "the letter does not say what exactly was wrong"
    assert bytes(letter[3]) == payload
    assert letter[4] == len(payload)
    assert len(since.logged(reason)) == 1, "one message, one line in the log"


@pytest.mark.parametrize("case", CLOSED)
def test_closes_the_connection(bridge: BridgeProcess, case: str) -> None:
    topic, payload = CLOSED[case]
    since = Since(bridge)
    with RawClient(bridge, "bad") as client:
        client.publish(topic, payload)
        assert client.outcome() == "closed"
    assert since.logged("bad"), "no line in the log says whose connection was closed"
    assert since.counted() == {}, "what closes the connection was never received"
    assert since.letters() == []
    with RawClient(bridge, "bad") as client:
        client.publish(TELEMETRY, f'{{"id": "after {case}", "temperature": 4.2}}'.encode())
        assert client.outcome() == "acknowledged"
    assert since.stored() == {f"after {case}"}


def test_a_dead_letter_is_listed_by_the_command_line(bridge: BridgeProcess) -> None:
    with RawClient(bridge, "bad") as client:
        client.publish(TELEMETRY, b"warm")
        assert client.outcome() == "acknowledged"
    listed = bridge.run("deadletters")
    assert listed.returncode == 0, listed.stderr
    assert "not_json" in listed.stdout
    assert TELEMETRY.decode() in listed.stdout
