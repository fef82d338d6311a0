"""Presence on a real database: connections, pings, sleep, epochs, and a race for one device."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from sqlalchemy import select, update

from bridge.agents.services import Rules
from bridge.broker.broker import EmbeddedBroker
from bridge.broker.config import BrokerConfig
from bridge.presence import Status
from bridge.receipts import Outcome
from bridge.storage import presence as stored
from bridge.storage import tables
from bridge.storage.database import Database
from bridge.storage.presence import UNSEEN
from tests.integration.agents.house import House, Line, house
from tests.integration.broker.house import connect, publish, subscribe
from tests.waiting import eventually

TOPIC = "devices/d1/presence"
Told = list[tuple[str, str, int]]


def told(built: House) -> Told:
    """What was published of the device's presence."""
    return [(body["status"], body["cause"], body["epoch"]) for body in built.bodies(TOPIC)]


async def kept(built: House, device_id: str = "d1") -> Told:
    """The history as it is stored, oldest first."""
    await built.writer.barrier()
    found = await built.database.read(lambda connection: stored.history(connection, device_id, 100_000))
    return [(row.status, row.cause, row.epoch) for row in reversed(found)]


@pytest.mark.parametrize("answered", [True, False])
async def test_a_silent_device_is_pinged_and_falls_silent_only_without_an_answer(url: str, answered: bool) -> None:
    async with house(url, Rules(ping_interval=0.1, ping_misses=2)) as built:
        built.router.attached("d1", Line(), listening=True)
        pings = 0
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline and len(built.bodies("devices/d1/ping")) < 4:
            found = built.bodies("devices/d1/ping")
            if answered and len(found) > pings:
                built.receive("devices/d1/pong", b'{"id":"%s"}' % found[-1]["id"].encode(), qos=0)
            pings = len(found)
            await asyncio.sleep(0.01)
        assert pings >= 3
        statuses = [body["status"] for body in built.bodies("devices/d1/presence")]
        assert statuses == (["online"] if answered else ["online", "silent"])
        device = built.router.find("d1")
        assert device is not None
        trips = device.liveness.round_trips
        assert (trips is not None) is answered
        if trips is not None:
            assert 0 <= trips.last <= 2.5
        assert built.services.census.pings >= pings


async def test_presence_follows_the_last_connection_and_epochs_survive_a_restart(url: str) -> None:
    async with house(url) as built:
        old, new = Line(), Line()
        built.router.attached("d1", old, listening=True)
        built.router.attached("d1", new, listening=True)
        built.router.detached("d1", old, "takeover")
        await eventually(lambda: built.bodies("devices/d1/presence"))
        built.router.detached("d1", new, "keepalive")
        await eventually(lambda: len(built.bodies("devices/d1/presence")) == 2)
        built.router.attached("d1", Line(), listening=False)
        await eventually(lambda: len(built.bodies("devices/d1/presence")) == 3)
    told = built.bodies("devices/d1/presence")
    assert [(body["status"], body["cause"], body["epoch"]) for body in told] == [
        ("online", "connect", 1), ("offline", "keepalive", 2), ("online", "connect", 3),
    ]  # fmt: skip
    assert all(sent.retain for sent in built.sent if sent.topic == "devices/d1/presence")
    async with house(url) as built:
        # It was online when the house went down without a word: nobody knows what became of it.
        told = built.bodies("devices/d1/presence")
        assert [(body["status"], body["cause"], body["epoch"]) for body in told] == [("unknown", "restart", 4)]
        assert built.services.census.devices["unknown"] == 1
        assert len(await kept(built)) == 4


async def test_a_pong_measures_the_ping_that_it_names_and_any_other_is_only_life(url: str) -> None:
    async with house(url, Rules(ping_interval=0.05, ping_misses=100)) as built:
        built.router.attached("d1", Line(), listening=True)
        await eventually(lambda: len(built.bodies("devices/d1/ping")) >= 3)
        device = built.router.find("d1")
        assert device is not None
        first = built.bodies("devices/d1/ping")[0]["id"]
        began = int(first, 16) / 1000
        for ping_id in (first, first, "nobody"):
            pong = built.receive("devices/d1/pong", msgspec.json.encode({"id": ping_id}))
            await eventually(lambda pong=pong: pong.outcome)  # type: ignore[misc]  # bound here
            assert pong.outcome is Outcome.COMMITTED
        trips = device.liveness.round_trips
        assert trips is not None
        # The first ping's, although there were others since: two intervals at least. And no other answer counted.
        assert 0.1 <= trips.quantile(0.01) == trips.quantile(1.0) == trips.last <= time.time() - began + 0.01
        bad = built.receive("devices/d1/pong", b"[")
        await eventually(lambda: bad.outcome)
        assert bad.outcome is Outcome.DEAD_LETTERED


async def test_a_sleeper_is_left_alone_and_missed_when_it_does_not_come_back(url: str) -> None:
    async with house(url, Rules(ping_interval=0.1, wake_grace=0.2, sleep_after=0.1, evict_after=0.2)) as built:
        line = Line()
        built.router.attached("d1", line, listening=True)
        began = time.time()
        receipt = built.receive("devices/d1/event/sleep", b'{"for": 0.8}')
        await eventually(lambda: receipt.outcome)
        built.router.detached("d1", line, "will")
        await eventually(lambda: len(told(built)) == 3)
        assert built.bodies(TOPIC)[2]["at"] >= began + 1.0
        assert told(built) == [("online", "connect", 1), ("online", "sleep", 2), ("offline", "overslept", 3)]
        assert built.bodies(TOPIC)[1]["until"] == pytest.approx(began + 0.8, abs=0.5)
        assert not built.bodies("devices/d1/ping")
        assert await kept(built) == told(built)
        assert built.services.census.transitions == {"connect": 1, "sleep": 1, "overslept": 1}
        assert built.services.census.devices["offline"] == 1
        # The announcement is an event like any other.
        streams = await built.database.read(_streams)
        assert streams == ["event/sleep"]
        refused = built.receive("devices/d1/event/sleep", b'{"for": "long"}')
        await eventually(lambda: refused.outcome)
        assert refused.outcome is Outcome.DEAD_LETTERED


async def _streams(connection: Any) -> list[str]:
    return list((await connection.execute(select(tables.telemetry.c.stream))).scalars())


async def test_all_devices_together_are_pinged_at_the_allowed_rate(url: str) -> None:
    async with house(url, Rules(ping_interval=0.01, ping_misses=100, ping_rate=40)) as built:
        began = time.monotonic()
        for number in range(30):
            built.router.attached(f"d{number}", Line(), listening=True)
        await eventually(lambda: built.services.census.pings >= 40, timeout=20.0)
        assert time.monotonic() - began >= 39 / 40
        pinged = [sent.topic for sent in built.sent if sent.topic.endswith("/ping")]
        assert len(set(pinged[:30])) >= 25, "everybody has a turn"


async def test_after_a_crash_no_epoch_is_published_again(url: str) -> None:
    async with house(url) as built:
        built.router.attached("d1", Line(), listening=True)
        await eventually(lambda: told(built))
    # What a bridge that is killed leaves behind: the note that it runs, and not all that it has published.
    database = await Database.open(url)
    await database.write(lambda connection: connection.execute(update(tables.epoch_floor).values(running=1)))
    await database.close()
    async with house(url) as built:
        await eventually(lambda: told(built))
        built.router.attached("d1", Line(), listening=True)
        built.router.attached("new", Line(), listening=True)
        await eventually(lambda: len(told(built)) == 2 and built.bodies("devices/new/presence"))
        assert told(built) == [("unknown", "restart", UNSEEN + 2), ("online", "connect", UNSEEN + 3)]
        # Of this one nothing is stored, which does not say that nothing was published.
        assert built.bodies("devices/new/presence")[0]["epoch"] == UNSEEN + 2


@asynccontextmanager
async def broker_of(built: House) -> AsyncIterator[EmbeddedBroker]:
    """A real broker before the agents."""
    broker = EmbeddedBroker(BrokerConfig(port=0), built.topics, built.ledger, built.router)
    recorded = built.services.publish

    def publish_both(topic: str, payload: bytes, **options: Any) -> int:
        recorded(topic, payload, **options)
        return broker.publish(topic, payload, **options)

    built.services.publish = publish_both
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop(5.0)


class Contender(asyncio.Protocol):
    """A socket that says who it is and speaks for the device, all in one breath, and then waits."""

    def __init__(self, packets: bytes, answer: int) -> None:
        self._packets = packets
        self._missing = answer
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # TCP
        self.transport.write(self._packets)

    def data_received(self, data: bytes) -> None:
        self._missing -= len(data)
        if self._missing <= 0 and not self.done.done():
            self.done.set_result(True)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(False)


async def race(port: int, number: int, at_once: int) -> list[Contender]:
    """`number` connections, `at_once` of them at a time, under four client ids, for one device."""
    loop = asyncio.get_running_loop()
    contenders: list[Contender] = []

    async def contend(index: int) -> None:
        says = connect(f"c{index % 4}", clean=index % 8 < 4) + subscribe(1, ("devices/d1/ping", 0))
        if index % 3 == 0:
            says += publish("devices/d1/pong", b"{}")
        _, contender = await loop.create_connection(lambda: Contender(says, 4 + 5), "127.0.0.1", port)
        contenders.append(contender)
        await contender.done

    for start in range(0, number, at_once):
        await asyncio.gather(*(contend(index) for index in range(start, min(number, start + at_once))))
    return contenders


async def test_racing_take_overs_end_in_the_state_of_the_socket_that_won(url: str, kind: str) -> None:
    loop = type(asyncio.get_running_loop()).__module__
    number = 10_000 if kind == "sqlite" and loop == "uvloop" else 500
    async with house(url) as built, broker_of(built) as broker:
        contenders = await race(broker.bound_port, number, at_once=100)
        assert len(contenders) == number
        await eventually(lambda: len(broker.connections) == 4)
        device = await eventually(lambda: built.router.find("d1"), "the agent, whose state is loaded")
        assert device is not None
        await eventually(lambda: device.listening)
        # Four client ids, so four sockets have won, and the device is where they are.
        assert len(broker.clients.sessions) == 4
        assert device.liveness.presence.status is Status.ONLINE
        assert device.listening
        assert told(built)[-1][0] == "online"
        for contender in contenders:
            contender.transport.abort()
        await eventually(lambda: not broker.connections)
        await eventually(lambda: device.liveness.presence.status is Status.OFFLINE)
        history = await kept(built)
        assert history == told(built), "stored and published are the same"
        assert [epoch for _, _, epoch in history] == list(range(1, len(history) + 1)), "no gap"
        assert history[-1][:2] == ("offline", "error")
        assert all(one[0] != other[0] for one, other in itertools.pairwise(history))
        assert retained(broker) == built.bodies(TOPIC)[-1]
        assert built.services.census.devices[Status.OFFLINE.value] == 1


async def test_racing_take_overs_of_one_client_id_leave_one_socket(url: str) -> None:
    async with house(url) as built, broker_of(built) as broker:
        loop = asyncio.get_running_loop()
        says = connect("c") + subscribe(1, ("devices/d1/ping", 0))
        sockets = await asyncio.gather(
            *(loop.create_connection(lambda: Contender(says, 9), "127.0.0.1", broker.bound_port) for _ in range(300))
        )
        await asyncio.gather(*(contender.done for _, contender in sockets))
        await eventually(lambda: len(broker.connections) == 1)
        await eventually(lambda: len(told(built)) == 2 * 299 + 1)
        causes = [cause for _, cause, _ in told(built)]
        assert causes == ["connect", "takeover"] * 299 + ["connect"]
        assert retained(broker) == built.bodies(TOPIC)[-1]
        for transport, _ in sockets:
            transport.close()
        await eventually(lambda: told(built)[-1][0] == "offline")


def retained(broker: EmbeddedBroker) -> Any:
    """What a new subscriber is told."""
    (message,) = broker.exchange.kept.matching(TOPIC)
    return msgspec.json.decode(message.payload)
