"""Any bytes, in any fragmentation, are understood or close the connection, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.broker import packets
from bridge.broker.broker import EmbeddedBroker
from bridge.broker.config import BrokerConfig
from bridge.broker.connection import Connection
from bridge.receipts import Ledger
from bridge.topics import Topics
from tests.integration.broker.house import RecordingIntake, connect, packet, publish, subscribe, text, unsubscribe


class Wire:
    """A transport that writes into memory."""

    def __init__(self) -> None:
        self.written = b""
        self.closing = False
        self.reading = True

    def write(self, data: bytes) -> None:
        assert not self.closing
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


topics = st.sampled_from(
    ["a", "a/b", "devices/d1/telemetry", "devices/d 1/telemetry", "devices/d1/command", "$x", "a/#"]
)
small = st.integers(0, 3)
acknowledgements = st.sampled_from([packets.puback, packets.pubrec, packets.pubrel, packets.pubcomp])
good = st.one_of(
    st.builds(publish, topics, st.binary(max_size=5), small, small, retain=st.booleans(), dup=st.booleans()),
    st.builds(lambda i, f, q: subscribe(i, (f, q)), small, topics, small),
    st.builds(unsubscribe, small, topics),
    st.builds(lambda kind, i: kind(i), acknowledgements, small),
    st.sampled_from([b"\xc0\x00", b"\xe0\x00"]),
    st.builds(connect, st.sampled_from(["c", ""]), keepalive=small),
)  # fmt: skip
near = st.builds(packet, st.integers(0, 255), st.binary(max_size=12))
streams = st.builds(
    lambda head, rest: head + b"".join(rest),
    st.sampled_from([connect(), connect(will=("a", b"w", 1, True)), b""]),
    st.lists(st.one_of(good, good, near, st.binary(max_size=4)), max_size=8),
)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


Result = tuple[bytes, str | None, list[bytes], dict[str, int]]


async def fed(pieces: list[bytes]) -> Result:
    """What a broker says to these pieces, and why it closed."""
    intake = RecordingIntake()
    ledger = Ledger()
    broker = EmbeddedBroker(BrokerConfig(max_packet_bytes=200), Topics(), ledger, intake, clock=lambda: 1.0)
    broker.accepting = True
    connection, wire = Connection(broker), Wire()
    connection.connection_made(cast("Any", wire))
    for piece in pieces:
        if wire.closing:
            break
        connection.data_received(piece)
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    closed_by = connection.closed_by
    assert (closed_by is not None) == wire.closing
    written = wire.written
    wire.closing = True
    connection.connection_lost(None)
    await asyncio.sleep(0)
    assert not broker.connections
    assert not broker.clients
    assert broker.tree.empty
    assert broker.tree.count == 0
    assert ledger.difference == ledger.in_flight == broker.passed.difference == broker.passed.in_flight == 0
    assert not asyncio.all_tasks() - {asyncio.current_task()}
    assert intake.attachments == [] or intake.detachments
    return written, closed_by, intake.payloads(), dict(broker.stats.closed)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(streams, st.lists(st.integers(1, 9), max_size=40))
def test_fragmentation_changes_nothing(runner: asyncio.Runner, stream: bytes, lengths: list[int]) -> None:
    pieces = []
    rest = stream
    for length in lengths:
        pieces.append(rest[:length])
        rest = rest[length:]
    pieces = [piece for piece in [*pieces, rest] if piece]
    assert runner.run(fed(pieces)) == runner.run(fed([stream] if stream else []))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes(runner: asyncio.Runner, stream: bytes) -> None:
    runner.run(fed([connect() + stream]))
    runner.run(fed([stream] if stream else []))


def test_the_two_tests_above_can_see_a_message(runner: asyncio.Runner) -> None:
    written, closed_by, payloads, _ = runner.run(fed([connect() + publish("devices/d1/telemetry", b"1", 1, 1)]))
    assert written == packets.connack(0) + packets.puback(1)
    assert closed_by is None
    assert payloads == [b"1"]
    assert text("a") == b"\0\1a"
