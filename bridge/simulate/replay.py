"""Replays recorded data as one device: in order, each reading until it is acknowledged."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Final, final

import aiomqtt

from bridge.errors import BridgeError
from bridge.simulate.client import Target, cause, client, heed_cancellation, pauses
from bridge.simulate.figures import Figures
from bridge.simulate.recording import Recorded
from bridge.topics import Topics

WINDOW: Final = 100
"""Readings in flight at most."""
ATTEMPTS: Final = 5
"""Connections in a row that acknowledge nothing before the replay is given up."""


class ReplayError(BridgeError):
    """The broker cannot be reached, or acknowledges nothing."""


@final
class Replay:
    """One replay of `recording`. `speed` is how much faster than recorded, None as fast as acknowledgements come."""

    def __init__(
        self,
        recording: Iterator[Recorded],
        device_id: str,
        target: Target,
        topics: Topics,
        figures: Figures,
        speed: float | None,
    ) -> None:
        self._recording = recording
        self._device_id = device_id
        self._target = target
        self._topic = topics.of(device_id, "telemetry")
        self._figures = figures
        self._speed = speed
        self._unacknowledged: dict[int, bytes] = {}
        self._began = 0.0
        self.first: float | None = None
        """Unix seconds of the first reading, and of the last one so far."""
        self.last: float | None = None

    async def run(self) -> None:
        """Publish all readings and return when the last one is acknowledged.

        Raises ReplayError, and RecordingError for a line that cannot be read.
        """
        rng = random.Random()  # noqa: S311 - the length of pauses, nothing secret
        waits, failures = pauses(rng), 0
        while True:
            before = self._figures.acknowledged
            try:
                await self._publish_all()
            except (aiomqtt.MqttError, ExceptionGroup) as error:
                why = cause(error)
                if not isinstance(why, aiomqtt.MqttError):
                    raise why from None
            else:
                return
            self._figures.trouble(str(why))
            if self._figures.acknowledged > before:
                waits, failures = pauses(rng), 0
            failures += 1
            if failures >= ATTEMPTS:
                where = f"{self._target.host}:{self._target.port}"
                raise ReplayError(f"broker {where}, given up after {failures} attempts: {why}")
            await asyncio.sleep(next(waits))

    async def _publish_all(self) -> None:
        """Publish on one connection: first what the one before it left unacknowledged, then what is left to read."""
        async with client(self._target, f"replay-{self._device_id}", window=WINDOW) as connection:
            heed_cancellation()
            self._figures.connects += 1
            watch = asyncio.create_task(_watch(connection))
            publish = asyncio.create_task(self._pump(connection))
            try:
                await asyncio.wait([watch, publish], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (watch, publish):
                    task.cancel()
                await asyncio.wait([watch, publish])
            for task in (publish, watch):
                if not task.cancelled():
                    task.result()
                    return

    async def _pump(self, connection: aiomqtt.Client) -> None:
        room = asyncio.Semaphore(WINDOW)
        async with asyncio.TaskGroup() as group:
            left = list(self._unacknowledged)
            self._figures.repeated += len(left)
            for number in left:
                await room.acquire()
                group.create_task(self._publish(connection, number, room))
            for reading in self._recording:
                # Noted before the next await: whatever happens from here on, it is not forgotten.
                number = self._figures.published
                self._figures.published += 1
                self._unacknowledged[number] = reading.payload()
                await self._until_due(reading.ts)
                await room.acquire()
                group.create_task(self._publish(connection, number, room))

    async def _publish(self, connection: aiomqtt.Client, number: int, room: asyncio.Semaphore) -> None:
        began = time.perf_counter()
        try:
            await connection.publish(self._topic, self._unacknowledged[number], qos=1)
        finally:
            room.release()
        self._figures.latencies.record(time.perf_counter() - began)
        self._figures.acknowledged += 1
        del self._unacknowledged[number]

    async def _until_due(self, ts: float) -> None:
        if self.first is None:
            self.first, self._began = ts, time.monotonic()
        self.last = ts
        if self._speed is not None:
            await asyncio.sleep(self._began + (ts - self.first) / self._speed - time.monotonic())


async def _watch(connection: aiomqtt.Client) -> None:
    """Ends with MqttError when the connection does: a publish by itself would only wait for its time to be over."""
    async for _ in connection.messages:
        pass
