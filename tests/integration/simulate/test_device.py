"""A simulated device on Mosquitto: readings, pings, commands, and broken connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiomqtt
import pytest

from bridge.simulate import fleet
from bridge.simulate.client import Target
from bridge.simulate.figures import Figures
from tests.servers import HOST, Mosquitto

WITHIN = 15.0
"""Seconds; what does not come by then will not come."""


@contextlib.asynccontextmanager
async def running(plan: fleet.Plan, target: Target, figures: Figures) -> AsyncIterator[None]:
    """The devices of `plan`, as long as the context lasts; fails if they end by themselves."""
    task = asyncio.create_task(fleet.run(plan, target, figures))
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def operator(target: Target, topic_filter: str = "devices/#") -> AsyncIterator[aiomqtt.Client]:
    async with asyncio.timeout(WITHIN), aiomqtt.Client(target.host, target.port) as client:
        await client.subscribe(topic_filter, qos=1)
        yield client


async def read(client: aiomqtt.Client, topic: str) -> dict[str, Any]:
    """The next message on `topic`; those on others are passed over."""
    async for message in client.messages:
        if message.topic.value == topic:
            assert isinstance(message.payload, bytes)
            decoded: dict[str, Any] = json.loads(message.payload)
            return decoded
    raise AssertionError


async def until(check: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(WITHIN):
            while not check():  # noqa: ASYNC110 - figures are counts, they tell nobody that they have changed
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"waited {WITHIN:g} s in vain for {what}") from None


async def subscribed(client: aiomqtt.Client, device_id: str) -> None:
    """Returns when the device answers: from then on it also gets commands."""
    while True:
        await client.publish(f"devices/{device_id}/ping", '{"id": "there?"}')
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await read(client, f"devices/{device_id}/pong")
                return


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_readings_are_objects_with_an_id_of_their_own(target: Target, qos: int) -> None:
    figures = Figures()
    async with operator(target) as client, running(fleet.Plan(devices=2, rate=50, qos=qos), target, figures):
        first = [await read(client, "devices/sim-0001/telemetry") for _ in range(5)]
        await read(client, "devices/sim-0002/telemetry")
    assert len({reading["id"] for reading in first}) == 5
    assert all({"ts", "temperature", "humidity", "battery"} <= reading.keys() for reading in first)
    assert figures.acknowledged > 0
    assert (figures.latencies.count > 0) is (qos > 0)
    assert not figures.troubles


async def test_the_same_device_measures_with_new_ids_in_the_next_run(target: Target) -> None:
    ids = []
    for _ in range(2):
        async with operator(target) as client, running(fleet.Plan(devices=1, rate=50), target, Figures()):
            ids.append((await read(client, "devices/sim-0001/telemetry"))["id"])
    assert ids[0] != ids[1]


async def test_a_ping_comes_back_as_it_was(target: Target) -> None:
    async with operator(target) as client, running(fleet.Plan(devices=1, rate=0), target, Figures()):
        await subscribed(client, "sim-0001")
        await client.publish("devices/sim-0001/ping", '{"id": "p1"}', qos=1)
        while (pong := await read(client, "devices/sim-0001/pong")) == {"id": "there?"}:
            pass
        assert pong == {"id": "p1"}


@pytest.mark.parametrize(("name", "status"), [("reboot", "succeeded"), ("fail", "failed")])
async def test_a_command_is_answered_twice_and_executed_once(target: Target, name: str, status: str) -> None:
    figures = Figures()
    request = json.dumps({"id": "c1", "name": name, "args": {"delay": 1}})
    answer = "devices/sim-0001/command/response"
    async with operator(target) as client, running(fleet.Plan(devices=1, rate=0), target, figures):
        await subscribed(client, "sim-0001")
        await client.publish("devices/sim-0001/command/request", request, qos=1)
        assert await read(client, answer) == {"id": "c1", "status": "in_progress"}
        done = await read(client, answer)
        assert (done["id"], done["status"]) == ("c1", status)

        await client.publish("devices/sim-0001/command/request", request, qos=1)
        assert await read(client, answer) == done
    assert (figures.commands, figures.repeated_commands) == (1, 1)


async def test_a_command_after_its_deadline_fails(target: Target) -> None:
    figures = Figures()
    async with operator(target) as client, running(fleet.Plan(devices=1, rate=0), target, figures):
        await subscribed(client, "sim-0001")
        late = {"id": "c1", "name": "reboot", "expires_at": 1.0}
        await client.publish("devices/sim-0001/command/request", json.dumps(late), qos=1)
        assert (await read(client, "devices/sim-0001/command/response"))["status"] == "failed"
    assert figures.commands == 0


async def test_rubbish_from_an_operator_is_passed_over(target: Target) -> None:
    async with operator(target) as client, running(fleet.Plan(devices=1, rate=0), target, Figures()):
        await subscribed(client, "sim-0001")
        for rubbish in (b"", b"\xff", b"[]", b'{"name": "reboot"}'):
            await client.publish("devices/sim-0001/command/request", rubbish, qos=1)
        await client.publish("devices/sim-0001/command/request", '{"id": "c1", "name": "reboot"}', qos=1)
        assert (await read(client, "devices/sim-0001/command/response"))["id"] == "c1"


async def test_devices_come_back_after_the_broker_does(mosquitto: Mosquitto, target: Target) -> None:
    figures = Figures()
    async with running(fleet.Plan(devices=5, rate=20), target, figures):
        await until(lambda: figures.connected == 5, "five devices")
        await asyncio.to_thread(mosquitto.kill)
        await until(lambda: figures.connected == 0, "all devices to notice")
        await asyncio.to_thread(mosquitto.start)
        await until(lambda: figures.connected == 5, "five devices once more")
        before = figures.acknowledged
        await until(lambda: figures.acknowledged > before + 10, "readings")
    assert figures.troubles
    assert figures.connected == 0, "stopped devices have disconnected"


async def test_hundreds_of_devices_in_one_process(target: Target) -> None:
    """A connection and a reading each, and every one of them answers a ping."""
    figures = Figures()
    async with operator(target, "devices/+/pong") as client, running(fleet.Plan(300, rate=0.5), target, figures):
        await until(lambda: figures.connected == 300, "all devices")
        await until(lambda: figures.acknowledged >= 300, "a reading of each")
        await subscribed(client, "sim-0300")
        answered = {"sim-0300"}
        for number in range(1, 300):
            await client.publish(f"devices/sim-{number:04}/ping", "{}")
        async for message in client.messages:
            answered.add(message.topic.value.split("/")[1])
            if len(answered) == 300:
                break
    assert not figures.troubles
    assert figures.connects == 300


async def test_a_refusal_is_told() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(b"\x20\x02\x00\x05")
        await reader.read()
        writer.close()

    figures = Figures()
    async with await asyncio.start_server(refuse, HOST, 0) as server:
        unwilling = Target(HOST, server.sockets[0].getsockname()[1])
        async with running(fleet.Plan(devices=1), unwilling, figures):
            await until(lambda: "not authorised" in figures.troubles, "the refusal")


async def test_devices_wait_for_a_broker_that_is_not_there_yet(mosquitto: Mosquitto) -> None:
    mosquitto.stop()
    figures = Figures()
    async with running(fleet.Plan(devices=1), Target(HOST, mosquitto.port), figures):
        await until(lambda: bool(figures.troubles), "a refused connection")
        await asyncio.to_thread(mosquitto.start)
        await until(lambda: figures.connected == 1, "the device")
