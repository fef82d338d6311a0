"""One simulated device: measures, answers pings, carries out commands, and comes back when its connection breaks."""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict, deque
from typing import Any, Final, final

import msgspec

from bridge.simulate.client import Target, cause, pauses
from bridge.simulate.figures import Figures
from bridge.simulate.line import Line, LineError, connected
from bridge.simulate.sensor import Sensor
from bridge.topics import Topics

REMEMBERED: Final = 1_000
"""Commands whose outcome a device remembers, so that it does not execute one twice."""
WAITING: Final = 100
"""Commands that wait for their turn; a device with more of them answers `failed`."""
WORK: Final = (0.05, 0.5)
"""Seconds that carrying out a command takes."""


class Request(msgspec.Struct):
    """A command as it arrives; `expires_at` in Unix seconds."""

    id: str
    name: str
    args: Any = None
    expires_at: float | None = None


_requests: Final = msgspec.json.Decoder(Request)


@final
class SimulatedDevice:
    """A device with `rate` readings per second (0: none) at `qos`."""

    def __init__(
        self,
        device_id: str,
        target: Target,
        topics: Topics,
        figures: Figures,
        gate: asyncio.Semaphore,
        *,
        rate: float,
        qos: int,
        seed: str,
    ) -> None:
        """`gate` limits how many devices connect at once; `seed` makes what it measures repeatable."""
        self.id = device_id
        self._line: Line | None = None
        self._target = target
        self._topics = topics
        self._request_topic = topics.of(device_id, "command/request")
        self._ping_topic = topics.of(device_id, "ping")
        self._figures = figures
        self._gate = gate
        self._rate = rate
        self._qos = qos
        self._random = random.Random(seed)  # noqa: S311 - measurements and pauses, nothing secret
        self._sensor = Sensor(self._random, time.time())
        # Ids must differ from those of earlier runs of the same device: they make duplicates.
        self._run = format(time.time_ns() // 1_000_000, "x")
        self._number = 0
        self._unacknowledged: bytes | None = None
        self._outcomes: OrderedDict[str, bytes | None] = OrderedDict()
        self._work: deque[Request] = deque()
        self._has_work = asyncio.Event()

    async def run(self) -> None:
        """Be a device until cancelled."""
        waits = pauses(self._random)
        while True:
            try:
                async with connected(self._target, self.id, self._received, self._gate) as line:
                    waits = pauses(self._random)
                    self._line = line
                    await self._live(line)
            except (LineError, ExceptionGroup) as error:
                why = cause(error)
                if not isinstance(why, LineError):
                    raise
                self._figures.trouble(str(why))
            await asyncio.sleep(next(waits))

    async def _live(self, line: Line) -> None:
        """Be a connected device until the connection ends with LineError."""
        self._figures.connects += 1
        self._figures.connected += 1
        try:
            await line.subscribe([self._request_topic, self._ping_topic])
            async with asyncio.TaskGroup() as group:
                group.create_task(self._execute(line))
                if self._rate > 0:
                    group.create_task(self._measure(line))
                # This must not be a task too: Python 3.11's group leaves a task that waits at its end marked as
                # cancelled when one of its members fails.
                await line.lost()
        finally:
            self._figures.connected -= 1

    async def _measure(self, line: Line) -> None:
        period = 1 / self._rate
        loop = asyncio.get_running_loop()
        if self._unacknowledged is not None:
            self._figures.repeated += 1
            await self._publish(line, self._unacknowledged)
        due = loop.time() + self._random.uniform(0, period)
        while True:
            # A device that was held up goes on from now: it does not send the missed readings in a burst.
            await asyncio.sleep(max(0.0, due - loop.time()))
            due = max(due + period, loop.time())
            now = time.time()
            self._number += 1
            values = self._sensor.measure(now)
            reading = {"id": f"{self._run}-{self._number}", "ts": round(now, 3), **values}
            self._unacknowledged = msgspec.json.encode(reading)
            self._figures.published += 1
            await self._publish(line, self._unacknowledged)

    async def _publish(self, line: Line, payload: bytes) -> None:
        began = time.perf_counter()
        await line.publish(self._topics.of(self.id, "telemetry"), payload, self._qos)
        if self._qos:
            self._figures.latencies.record(time.perf_counter() - began)
        self._figures.acknowledged += 1
        self._unacknowledged = None

    def _received(self, topic: str, payload: bytes) -> None:
        """A message from the broker."""
        if topic == self._ping_topic:
            self._figures.pings += 1
            self._post("pong", payload, 0)
        elif topic == self._request_topic:
            self._take(payload)

    def _take(self, payload: bytes) -> None:
        """Queue a request, unless it has come before: then it is answered again and not executed again."""
        try:
            request = _requests.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return  # nothing that it could answer: there is no id
        if request.id in self._outcomes:
            self._figures.repeated_commands += 1
            self._answer(self._outcomes[request.id] or _response(request.id, "in_progress"))
        elif request.expires_at is not None and request.expires_at <= time.time():
            self._answer(_response(request.id, "failed", error="it came after its deadline"))
        elif len(self._work) >= WAITING:
            self._answer(_response(request.id, "failed", error="the device is busy"))
        else:
            self._outcomes[request.id] = None
            if len(self._outcomes) > REMEMBERED:
                self._outcomes.popitem(last=False)
            self._work.append(request)
            self._has_work.set()

    async def _execute(self, line: Line) -> None:
        """Carry out what is queued, one after the other. What a broken connection left unanswered is answered on the
        next one, from the outcome that was remembered."""
        while True:
            while not self._work:
                self._has_work.clear()
                await self._has_work.wait()
            request = self._work[0]
            outcome = self._outcomes.get(request.id)
            if outcome is None:
                await self._respond(line, _response(request.id, "in_progress"))
                await asyncio.sleep(self._random.uniform(*WORK))
                outcome = self._outcome(request)
                self._outcomes[request.id] = outcome
                self._figures.commands += 1
            await self._respond(line, outcome)
            self._work.popleft()

    def _outcome(self, request: Request) -> bytes:
        if request.name == "fail":
            return _response(request.id, "failed", error="asked to fail")
        result: dict[str, Any] = {"done": request.name}
        if request.args is not None:
            result["args"] = request.args
        return _response(request.id, "succeeded", result=result)

    async def _respond(self, line: Line, response: bytes) -> None:
        await line.publish(self._topics.of(self.id, "command/response"), response, 1)

    def _answer(self, response: bytes) -> None:
        self._post("command/response", response, 1)

    def _post(self, name: str, payload: bytes, qos: int) -> None:
        if self._line is not None:
            self._line.post(self._topics.of(self.id, name), payload, qos)


def _response(command_id: str, status: str, **more: Any) -> bytes:
    return msgspec.json.encode({"id": command_id, "status": status, **more})
