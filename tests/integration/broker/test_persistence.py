"""Kept sessions, their messages and retained messages over the end of the bridge, on both databases."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest_asyncio

from bridge.storage.database import Database
from bridge.storage.sessions import SessionStore
from bridge.storage.writer import Writer
from tests.integration.broker.raw import RESUMED, House, ack, connect, publish, running, suback, subscribe
from tests.waiting import eventually

Bridge = Callable[..., AbstractAsyncContextManager[House]]


@pytest_asyncio.fixture
async def bridge(url: str) -> Bridge:
    """Starts a broker on the test's database; leaving it is `kill -9` for what is in memory: nothing is written."""

    @asynccontextmanager
    async def start(*, killed: bool = False, **config: Any) -> AsyncIterator[House]:
        database = await Database.open(url)
        writer = Writer(database)
        await writer.start()
        try:
            async with running(SessionStore(database, writer), **config) as house:
                yield house
                if killed:
                    # Whatever the broker still wants to store when it stops is lost.
                    writer.task.cancel()
                    await writer.stop(0)
        finally:
            await writer.stop(5)
            await database.close()

    return start


async def test_sessions_messages_and_retained_survive(bridge: Bridge) -> None:
    """[MQTT-4.1.0-1]."""
    async with bridge() as house:
        client = await house.client("c", clean=False)
        client.send(subscribe(("a/#", 2), ("b", 1)) + publish("r/1", b"kept", retain=True, qos=1))
        client.send(publish("r/2", b"gone", retain=True) + publish("r/2", b"", retain=True))
        await client.expect(suback(2, 1) + ack("puback"))
        await client.leave()
        sender = await house.client("sender")
        for n in range(1, 4):
            sender.send(publish("a/x", bytes(str(n), "ascii"), qos=1, packet_id=n))
        await sender.expect(ack("puback", 1) + ack("puback", 2) + ack("puback", 3))
    async with bridge() as house:
        assert house.broker.stats.retained == 1
        client = await house.client("c", clean=False, answer=RESUMED)
        await client.expect(b"".join(publish("a/x", bytes(str(n), "ascii"), qos=1, packet_id=n) for n in (1, 2, 3)))
        client.send(ack("puback", 1) + ack("puback", 3) + subscribe(("r/#", 0), packet_id=9))
        await client.expect(suback(0, packet_id=9) + publish("r/1", b"kept", retain=True))
        client.reset()
        await eventually(lambda: not house.broker.connections, "the end")
    async with bridge() as house:
        client = await house.client("c", clean=False, answer=RESUMED)
        await client.expect(publish("a/x", b"2", qos=1, packet_id=2, dup=True))
        client.send(ack("puback", 2))
        await client.quiet()
        house.broker.publish("b", b"live", qos=1)
        await client.expect(publish("b", b"live", qos=1, packet_id=3))


async def test_an_acknowledged_message_survives_a_kill(bridge: Bridge) -> None:
    """P1 for ordinary messages: what is queued for a kept session is durable before the PUBACK."""
    async with bridge(killed=True) as house:
        client = await house.client("c", clean=False)
        client.send(subscribe(("a", 1)))
        await client.expect(suback(1))
        await client.leave()
        sender = await house.client("sender")
        sender.send(publish("a", b"promised", qos=1))
        await sender.expect(ack("puback"))
    async with bridge() as house:
        client = await house.client("c", clean=False, answer=RESUMED)
        await client.expect(publish("a", b"promised", qos=1))


async def test_qos_2_identifiers_survive(bridge: Bridge) -> None:
    """[MQTT-4.3.3-2] over a kill: not handed on twice, and free after PUBCOMP."""
    async with bridge() as house:
        listener = await house.client("listener", clean=False)
        listener.send(subscribe(("a", 0)))
        await listener.expect(suback(0))
        client = await house.client("c", clean=False)
        client.send(publish("a", b"1", qos=2, packet_id=7))
        await client.expect(ack("pubrec", 7))
        await listener.expect(publish("a", b"1"))
        client.reset()
    async with bridge(killed=True) as house:
        listener = await house.client("listener", clean=False, answer=RESUMED)
        client = await house.client("c", clean=False, answer=RESUMED)
        client.send(publish("a", b"1", qos=2, packet_id=7, dup=True))
        await client.expect(ack("pubrec", 7))
        await listener.quiet()
        client.send(ack("pubrel", 7))
        await client.expect(ack("pubcomp", 7))
    async with bridge() as house:
        listener = await house.client("listener", clean=False, answer=RESUMED)
        client = await house.client("c", clean=False, answer=RESUMED)
        client.send(publish("a", b"2", qos=2, packet_id=7))
        await listener.expect(publish("a", b"2"))


async def test_qos_2_to_a_client_over_a_kill(bridge: Bridge) -> None:
    """[MQTT-4.3.3-1]: the same identifier before the PUBREC, only PUBREL after it."""
    async with bridge(killed=True) as house:
        client = await house.client("c", clean=False)
        client.send(subscribe(("a", 2)))
        await client.expect(suback(2))
        for payload in (b"1", b"2"):
            house.broker.publish("a", payload, qos=2)
        await client.expect(publish("a", b"1", qos=2, packet_id=1) + publish("a", b"2", qos=2, packet_id=2))
        client.send(ack("pubrec", 1))
        await client.expect(ack("pubrel", 1))
    async with bridge() as house:
        client = await house.client("c", clean=False, answer=RESUMED)
        await client.expect(ack("pubrel", 1) + publish("a", b"2", qos=2, packet_id=2, dup=True))
        client.send(ack("pubcomp", 1) + ack("pubrec", 2))
        await client.expect(ack("pubrel", 2))
        client.send(ack("pubcomp", 2))
        await client.quiet()
    async with bridge() as house:
        client = await house.client("c", clean=False, answer=RESUMED)
        await client.quiet()


async def test_a_clean_session_leaves_nothing(bridge: Bridge) -> None:
    """[MQTT-3.1.2-6] in the database, too."""
    async with bridge() as house:
        client = await house.client("c", clean=False)
        client.send(subscribe(("a", 1)))
        await client.expect(suback(1))
        await client.leave()
        house.broker.publish("a", b"waits", qos=1)
        await (await house.client("c", clean=True)).leave()
    async with bridge() as house:
        assert not house.broker.clients.sessions


async def test_a_session_expires(bridge: Bridge) -> None:
    async with bridge() as house:
        await (await house.client("c", clean=False)).leave()
        await house.client("here", clean=False)
    async with bridge(session_expiry=-1.0) as house:
        house.broker.clients.expire()
        # The one that was connected when the bridge ended is counted from the restart on; that is over, too.
        assert not house.broker.clients.sessions
    async with bridge() as house:
        assert not house.broker.clients.sessions


async def test_ten_thousand_sessions_are_loaded_in_time(bridge: Bridge) -> None:
    async with bridge(max_sessions=20_000) as house:
        store = house.broker.store
        assert store is not None
        for n in range(10_000):
            stored = store.save(f"client-{n}", None, {f"devices/{n}/command/request": 1}, 1.0, 1.0)
        await stored
    began = time.monotonic()
    async with bridge() as house:
        assert len(house.broker.clients.sessions) == 10_000
        assert time.monotonic() - began < 5


async def test_before_kept_sessions_are_known_nobody_gets_one(bridge: Bridge, url: str) -> None:
    """A broker whose database has not been reached tells a client that asks for its session to come again; one that
    begins anew has none from then on [MQTT-3.1.2-6]."""
    async with bridge() as house:
        for name in ("c", "d"):
            client = await house.client(name, clean=False)
            client.send(subscribe(("a/#", 1)))
            await client.expect(suback(1))
            await client.leave()
    async with bridge(restored=False) as house:
        client = await house.raw()
        client.send(connect("c", clean=False))
        await client.closed(after=bytes((0x20, 2, 0, 3)))  # server unavailable (3.2.2.3)
        await (await house.client("d")).leave()
    async with bridge() as house:
        await house.client("c", clean=False, answer=RESUMED)
        await house.client("d", clean=False)
