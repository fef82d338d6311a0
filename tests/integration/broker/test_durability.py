"""What is there after a restart, and that nothing is acknowledged before it would be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.broker import packets
from bridge.storage import migrate
from bridge.storage.database import Database
from bridge.storage.sessions import SessionStore
from bridge.storage.writer import Writer
from tests.integration.broker.house import DISCONNECT, Door, broker, publish, subscribe, unsubscribe
from tests.integration.storage.witness import SqliteWitness
from tests.waiting import eventually


@asynccontextmanager
async def stored_broker(folder: Path, **config: Any) -> AsyncIterator[Door]:
    """A broker on the SQLite file in `folder`, which may hold an earlier one's sessions."""
    url = f"sqlite+aiosqlite:///{folder}/bridge.db"
    await migrate.upgrade(url)
    async with AsyncExitStack() as undo:
        database = await Database.open(url)
        undo.push_async_callback(database.close)
        writer = Writer(database)
        await writer.start()
        undo.push_async_callback(writer.stop, 5.0)
        yield await undo.enter_async_context(broker(store=SessionStore(database, writer), **config))


@asynccontextmanager
async def nothing_can_be_committed(folder: Path) -> AsyncIterator[None]:
    """Somebody else holds the database's write lock."""
    witness = SqliteWitness(f"sqlite+aiosqlite:///{folder}/bridge.db")
    await witness.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        await witness.execute("ROLLBACK")
        await witness.close()


async def test_a_session_its_queue_and_its_order_survive(tmp_path: Path) -> None:
    async with stored_broker(tmp_path) as door:
        reader = await door.client("reader", clean=False)
        await reader.subscribe("a/#", qos=1)
        reader.send(DISCONNECT)
        await reader.closed()
        writer = await door.client("writer")
        for i in range(1, 21):
            writer.send(publish("a/b", b"%d" % i, 1, i))
        await writer.expect(*(packets.puback(i) for i in range(1, 21)))
    async with stored_broker(tmp_path) as door:
        reader = await door.client("reader", clean=False, present=True)
        await reader.expect(*(publish("a/b", b"%d" % i, 1, i) for i in range(1, 21)))
        reader.send(*(packets.puback(i) for i in range(1, 21)))
        await reader.silent()
    async with stored_broker(tmp_path) as door:
        reader = await door.client("reader", clean=False, present=True)
        await reader.silent()
        writer = await door.client("writer")
        writer.send(publish("a/c", b"new", 1, 1))
        await reader.expect(publish("a/c", b"new", 1, 1))


async def test_what_was_in_flight_comes_again_with_its_identifier(tmp_path: Path) -> None:
    async with stored_broker(tmp_path, max_inflight=3) as door:
        reader = await door.client("reader", clean=False)
        await reader.subscribe("a", qos=2)
        writer = await door.client("writer")
        writer.send(*(publish("a", b"%d" % i, 1 + i % 2, i) for i in range(1, 6)))
        # 1 and 3 are QoS 2: they wait until their identifiers are stored; 2 does not.
        await reader.expect(publish("a", b"2", 1, 2))
        await reader.expect(publish("a", b"1", 2, 1), publish("a", b"3", 2, 3))
        reader.send(packets.pubrec(1))
        await reader.expect(packets.pubrel(1))
        await reader.drop()
    async with stored_broker(tmp_path, max_inflight=3) as door:
        reader = await door.client("reader", clean=False, present=True)
        await reader.expect(packets.pubrel(1), publish("a", b"2", 1, 2, dup=True), publish("a", b"3", 2, 3, dup=True))
        reader.send(packets.pubcomp(1), packets.puback(2))
        await reader.expect(publish("a", b"4", 1, 4))
        await reader.expect(publish("a", b"5", 2, 5))


async def test_a_retained_message_keeps_its_mark_over_a_restart(tmp_path: Path) -> None:
    async with stored_broker(tmp_path) as door:
        writer = await door.client("writer")
        writer.send(publish("r", b"1", 1, 1, retain=True), publish("s", b"1", 1, 2, retain=True))
        writer.send(publish("s", b"", 1, 3, retain=True), publish("t", b"1", 0, retain=True))
        await writer.expect(packets.puback(1), packets.puback(2), packets.puback(3))
        reader = await door.client("reader", clean=False)
        await reader.subscribe("r", qos=1)
        await reader.expect(publish("r", b"1", 1, 1, retain=True))
    async with stored_broker(tmp_path) as door:
        assert sorted(message.topic for message in door.broker.exchange.kept.matching("#")) == ["r", "t"]
        reader = await door.client("reader", clean=False, present=True)
        await reader.expect(publish("r", b"1", 1, 1, retain=True, dup=True))


async def test_subscriptions_that_were_ended_stay_ended(tmp_path: Path) -> None:
    async with stored_broker(tmp_path) as door:
        reader = await door.client("reader", clean=False)
        await reader.subscribe("a", "b", qos=1)
        reader.send(unsubscribe(2, "a"))
        await reader.expect(packets.unsuback(2))
        await (await door.client("other", clean=False)).subscribe("c")
        await (await door.client("other", clean=True, present=False)).silent()
    async with stored_broker(tmp_path) as door:
        assert {c: s.subscriptions for c, s in door.broker.clients.sessions.items()} == {"reader": {"b": 1}}


@pytest.mark.parametrize("topic", ["devices/d1/telemetry", "ordinary"])
async def test_a_qos_2_message_is_taken_over_once_over_a_restart(tmp_path: Path, topic: str) -> None:
    async with stored_broker(tmp_path) as door:
        reader = await door.client("reader", clean=False)
        await reader.subscribe(topic, qos=1)
        device = await door.client("device", clean=False)
        device.send(publish(topic, b"1", 2, 7))
        await reader.expect(publish(topic, b"1", 1, 1))
        await device.expect(packets.pubrec(7))
        reader.send(packets.puback(1))
        await reader.silent()
        # On a device's topic the writer of the readings stores the identifier; here there is none.
        if topic != "ordinary":
            assert door.broker.store is not None
            door.broker.store.take("device", 7)
    async with stored_broker(tmp_path) as door:
        reader = await door.client("reader", clean=False, present=True)
        device = await door.client("device", clean=False, present=True)
        device.send(publish(topic, b"1", 2, 7, dup=True))
        await device.expect(packets.pubrec(7))
        device.send(packets.pubrel(7))
        await device.expect(packets.pubcomp(7))
        await reader.silent()
        assert not door.intake.messages
    async with stored_broker(tmp_path) as door:
        device = await door.client("device", clean=False, present=True)
        device.send(publish(topic, b"2", 2, 7))
        await device.expect(packets.pubrec(7))
        await eventually(lambda: door.broker.clients.sessions["reader"].queued == 1, "the new message")


@pytest.mark.parametrize("qos", [1, 2])
async def test_what_is_to_be_kept_is_acknowledged_when_it_is_stored(tmp_path: Path, qos: int) -> None:
    ack = packets.puback if qos == 1 else packets.pubrec
    async with stored_broker(tmp_path) as door:
        reader = await door.client("reader", clean=False)
        await reader.subscribe("kept", qos=1)
        await reader.drop()
        await eventually(lambda: door.broker.stats.connections == 0, "the reader is gone")
        store = door.broker.store
        assert store is not None
        await eventually(lambda: store.stored is None, "everything is stored")
        writer = await door.client("writer")
        async with nothing_can_be_committed(tmp_path):
            writer.send(publish("for nobody", b"1", qos, 1))
            await writer.expect(ack(1))
            writer.send(publish("kept", b"2", qos, 2))
            await writer.silent()
            writer.send(publish("for nobody", b"3", qos, 3, retain=True))
            await writer.silent()
        await writer.expect(ack(2), ack(3))


async def test_other_answers_that_wait_until_they_are_true(tmp_path: Path) -> None:
    async with stored_broker(tmp_path) as door:
        client = await door.client("c", clean=False)
        await client.subscribe("a", qos=2)
        client.send(publish("b", b"1", 2, 7))
        await client.expect(packets.pubrec(7))
        writer = await door.client("writer")
        async with nothing_can_be_committed(tmp_path):
            client.send(subscribe(2, ("a", 2)))
            await client.expect(packets.suback(2, [2]))  # nothing new
            client.send(subscribe(3, ("b", 1)))
            client.send(packets.pubrel(7))
            writer.send(publish("a", b"2", 2, 1))
            await writer.silent()
            await client.silent()
        await client.expect(packets.suback(3, [1]), packets.pubcomp(7), publish("a", b"2", 2, 1))
        await writer.expect(packets.pubrec(1))
        async with nothing_can_be_committed(tmp_path):
            client.send(packets.pubrec(1))
            await client.silent()
        await client.expect(packets.pubrel(1))


async def test_a_clean_sessions_subscriptions_wait_for_nothing(tmp_path: Path) -> None:
    async with stored_broker(tmp_path) as door:
        client = await door.client("c")
        async with nothing_can_be_committed(tmp_path):
            await client.subscribe("a", qos=2)
            client.send(publish("a", b"1", 2, 7))
            await client.expect(publish("a", b"1", 2, 1), packets.pubrec(7))
            client.send(packets.pubrel(7), packets.pubrec(1))
            await client.expect(packets.pubcomp(7), packets.pubrel(1))


async def test_a_stop_acknowledges_what_it_stores(tmp_path: Path) -> None:
    async with stored_broker(tmp_path) as door:
        writer = await door.client("writer")
        door.clients.clear()  # it stays
        writer.send(publish("r", b"1", 1, 1, retain=True))
        await eventually(lambda: door.broker.stats.retained == 1, "the message")
    await writer.expect(packets.puback(1))
    assert await writer.closed() == b""
    await writer.drop()
    async with stored_broker(tmp_path) as door:
        assert door.broker.stats.retained == 1
