"""The replay of a recording on Mosquitto: every reading arrives, in order, also over connections that break."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import aiomqtt
import pytest

from bridge.simulate.client import Target
from bridge.simulate.figures import Figures
from bridge.simulate.recording import Recorded, read
from bridge.simulate.replay import Replay, ReplayError
from bridge.topics import Topics
from tests.servers import HOST, Mosquitto, free_port

DATA = Path(__file__).parents[2] / "data" / "seattle-temps-excerpt.csv"
TOPIC = "devices/seattle/telemetry"
WITHIN = 20.0


def recording() -> Iterator[Recorded]:
    return read(DATA, ZoneInfo("America/Los_Angeles"))


def replay(target: Target, figures: Figures, readings: Iterator[Recorded], speed: float | None = None) -> Replay:
    return Replay(readings, "seattle", target, Topics(), figures, speed)


async def received(client: aiomqtt.Client, count: int) -> list[dict[str, Any]]:
    """The next `count` readings; one that comes again counts once."""
    found: dict[str, dict[str, Any]] = {}
    async for message in client.messages:
        assert isinstance(message.payload, bytes)
        reading = json.loads(message.payload)
        found.setdefault(reading["id"], reading)
        if len(found) == count:
            break
    return list(found.values())


async def test_every_reading_arrives_in_order(target: Target) -> None:
    expected = list(recording())
    figures = Figures()
    async with asyncio.timeout(WITHIN), aiomqtt.Client(target.host, target.port) as witness:
        await witness.subscribe(TOPIC, qos=1)
        job = replay(target, figures, recording())
        await job.run()
        found = await received(witness, len(expected))
    assert [reading["ts"] for reading in found] == [reading.ts for reading in expected]
    assert [reading["temp"] for reading in found] == [reading.values["temp"] for reading in expected]
    assert figures.published == figures.acknowledged == figures.latencies.count == len(expected)
    assert (job.first, job.last) == (expected[0].ts, expected[-1].ts)


async def test_a_broker_that_goes_away_meanwhile_costs_no_reading(mosquitto: Mosquitto, target: Target) -> None:
    expected = list(recording())
    figures = Figures()

    def interrupted() -> Iterator[Recorded]:
        for number, reading in enumerate(recording()):
            if number == len(expected) // 2:
                mosquitto.kill()
                mosquitto.start()
            yield reading

    async with asyncio.timeout(WITHIN):
        await replay(target, figures, interrupted()).run()
    assert figures.acknowledged == figures.published == len(expected)
    assert figures.repeated > 0, "what was in flight was sent again"
    assert figures.connects == 2
    assert figures.troubles


async def test_time_passes_as_recorded_times_the_speed(target: Target) -> None:
    readings = [Recorded(1_000_000.0 + second, {"temp": 1.0}) for second in range(4)]
    loop = asyncio.get_running_loop()
    began = loop.time()
    await replay(target, Figures(), iter(readings), speed=10.0).run()
    assert 0.3 <= loop.time() - began < 3.0


async def test_without_a_broker_it_gives_up_and_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.simulate.client.FIRST_PAUSE", 0.01)
    port = free_port()
    with pytest.raises(ReplayError, match=str(port)):
        async with asyncio.timeout(WITHIN):
            await replay(Target(HOST, port), Figures(), recording()).run()
