"""Any byte stream either parses or closes the connection, in any fragmentation, with nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.broker.raw import (
    ack,
    connect,
    packet,
    publish,
    running,
    subscribe,
    unsubscribe,
)

good = st.sampled_from(
    [
        connect("h"),
        connect("h", clean=False, will=("w", b"x", 2, True)),
        publish("a/b", b"x"),
        publish("a/b", b"x", qos=1),
        publish("devices/d/telemetry", b"x" * 300, qos=2, retain=True),
        subscribe(("a/#", 2), ("$SYS/#", 0)),
        unsubscribe("a/#"),
        *(ack(kind) for kind in ("puback", "pubrec", "pubrel", "pubcomp")),
        b"\xc0\x00",
        b"\xe0\x00",
    ]
)
packets = st.one_of(good, st.builds(packet, st.integers(0, 255), st.binary(max_size=60)), st.binary(max_size=30))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    streams=st.lists(st.lists(packets, max_size=12), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5),
    introduce=st.booleans(),
)
def test_parses_or_closes(streams: list[list[bytes]], sizes: list[int], introduce: bool) -> None:
    """`running` sees to it that nothing is left: no connection, no session of a clean client, no open receipt."""

    async def play() -> None:
        before = asyncio.all_tasks()
        async with running() as house:
            raws = []
            for stream in streams:
                raw = await house.raw()
                raws.append(raw)
                data = (connect("h") if introduce else b"") + b"".join(stream)
                pieces = itertools.cycle(sizes)
                at = 0
                while at < len(data):
                    size = next(pieces)
                    raw.send(data[at : at + size])
                    at += size
                    await asyncio.sleep(0)
                with contextlib.suppress(OSError):  # closed by the broker already
                    raw.writer.write_eof()
            for raw in raws:
                async with asyncio.timeout(10):
                    with contextlib.suppress(ConnectionError):
                        await raw.reader.read()
            assert set(house.broker.stats.closed) <= {
                "disconnect", "disconnected", "protocol_error", "packet_too_large", "takeover", "not_authorised",
                "bad_client_id", "bad_protocol", "too_many_levels",
            }, house.broker.stats.closed  # fmt: skip
        assert asyncio.all_tasks() == before

    asyncio.run(play())


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_a_whole_conversation_in_small_pieces(size: int) -> None:
    async with running() as house:
        raw = await house.raw()
        data = connect("h") + subscribe(("a", 0)) + publish("a", b"x" * 500, qos=1) + b"\xc0\x00\xe0\x00"
        for at in range(0, len(data), size):
            raw.send(data[at : at + size])
            await asyncio.sleep(0)
        await raw.closed(
            b"\x20\x02\x00\x00\x90\x03\x00\x01\x00" + publish("a", b"x" * 500) + ack("puback") + b"\xd0\x00"
        )
