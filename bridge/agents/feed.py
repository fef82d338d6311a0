"""What happens to the devices, as it happens, for those who watch. Nobody is ever waited for.

Telemetry, events and dead letters are shown once they are committed: what happened since the last look is shown when
a barrier of the writer says so, one barrier for all of it. Presence and twins are shown when they are published, a
command's step when it is committed, as everywhere.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, final

import msgspec

from bridge.errors import StorageUnavailableError
from bridge.readings import Reading
from bridge.storage.deadletters import DeadLetter
from bridge.storage.writer import Writer

KINDS: Final = ("telemetry", "event", "presence", "command", "twin", "dead_letter")
"""Kinds of happenings, and `gap` beside them."""
SHOWN_EVERY: Final = 0.1
"""Seconds over which committed readings are collected before they are shown: one barrier each."""
MAX_WAITING: Final = 10_000
"""Happenings that wait to be committed; the oldest are dropped then, and everybody has a gap."""
MAX_QUEUED: Final = 1_000
"""Happenings that wait for one listener; the oldest are dropped then, and that listener has a gap."""
MAX_KEPT: Final = 4_096
"""Happenings kept for listeners that come back."""
LINGER: Final = 30.0
"""Seconds that happenings are kept after the last listener has gone: most come back."""
MAX_VALUES: Final = 4_096
"""Bytes of a payload that are shown; of a larger one only its size is: it can be read from the database."""

_PUBLISHED: Final = {"presence": "presence", "command/status": "command", "state": "twin"}
"""The device topics whose messages are shown → the kind of happening."""
_PREFIX: Final = "event/"


@final
class Happening:
    """One thing that happened, numbered in the order in which it is shown."""

    __slots__ = ("_frame", "body", "device_id", "id", "kind")

    def __init__(self, number: int, kind: str, device_id: str | None, body: dict[str, Any]) -> None:
        self.id = number
        self.kind = kind
        self.device_id = device_id
        self.body = body
        self._frame: bytes | None = None

    @property
    def frame(self) -> bytes:
        """As a server-sent event, made once for all listeners (HTML, 9.2.5)."""
        if self._frame is None:
            data = msgspec.json.encode({"device_id": self.device_id, **self.body})
            # A device's JSON is passed on as it was sent and may be broken into lines, which would end the field.
            # In JSON a line break is white space, or it is escaped.
            data = data.replace(b"\r", b" ").replace(b"\n", b" ")
            self._frame = b"id: %d\nevent: %s\ndata: %s\n\n" % (self.id, self.kind.encode(), data)
        return self._frame


@final
class Listener:
    """Somebody who watches: what of it, what waits for them, and how much of it they have missed."""

    __slots__ = ("_devices", "_kinds", "_missed", "_queue", "_waker", "closed")

    def __init__(self, kinds: Collection[str], devices: Collection[str] | None) -> None:
        """`kinds` empty: all. `devices` None: all."""
        self._kinds = frozenset(kinds or KINDS)
        self._devices = None if devices is None else frozenset(devices)
        self._queue: deque[Happening] = deque()
        self._missed: int | None = 0
        self._waker: asyncio.Future[None] | None = None
        self.closed = False
        """Nothing more will come."""

    def watch(self, devices: Collection[str]) -> None:
        """From now on these devices."""
        self._devices = frozenset(devices)

    def offer(self, happening: Happening) -> None:
        """Take a happening if it is one to be shown; drop the oldest one if there are too many."""
        if happening.kind not in self._kinds:
            return
        if self._devices is not None and happening.device_id not in self._devices:
            return
        if len(self._queue) >= MAX_QUEUED:
            self._queue.popleft()
            self.miss(1)
        self._queue.append(happening)
        self.wake()

    def miss(self, count: int | None) -> None:
        """Some could not be shown; None: nobody knows how many."""
        self._missed = None if count is None or self._missed is None else self._missed + count

    def wake(self) -> None:
        """Have `wait` return."""
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    def take(self) -> bytes:
        """All that waits, as server-sent events; first a `gap` with the number of those missed, if any were."""
        frames = [happening.frame for happening in self._queue]
        self._queue.clear()
        if self._missed != 0:
            frames.insert(0, b'event: gap\ndata: {"missed":%s}\n\n' % msgspec.json.encode(self._missed))
            self._missed = 0
        return b"".join(frames)

    async def wait(self, timeout: float) -> bool:
        """Wait until there is something to take or nothing more will come; False if there was neither in time."""
        if not (self._queue or self.closed or self._missed != 0):
            self._waker = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._waker], timeout=timeout)
            self._waker = None
        return bool(self._queue) or self.closed or self._missed != 0


@final
class Feed:
    """Tells listeners what happens. `listening` is the one question of the hot path: nothing is collected while nobody
    listens, or has listened a moment ago."""

    def __init__(self, writer: Writer, clock: Callable[[], float]) -> None:
        self.listening = False
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._listeners: set[Listener] = set()
        self._waiting: deque[tuple[str, str | None, dict[str, Any]]] = deque()
        self._dropped = 0
        self._showing = False
        self._kept: deque[Happening] = deque()
        # Microseconds of the clock are ahead of what can be numbered, so numbers grow over restarts.
        self._last = int(clock() * 1_000_000)
        # All later happenings are kept; nothing is known of those before `_began`.
        self._before_kept = self._began = self._last
        self._lingering: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._listeners)

    # ------------------------------------------------------------------ from the agents, only while `listening`

    def readings(self, device_id: str, stream: str, received_at: float, readings: Iterable[Reading]) -> None:
        """Readings, or what happened to a device, are handed to the writer."""
        kind = "telemetry"
        if stream.startswith(_PREFIX):
            kind, stream = "event", stream[len(_PREFIX) :]
        for reading in readings:
            body: dict[str, Any] = {"stream": stream, "ts": reading.ts, "received_at": received_at}
            body |= _shown(reading.payload)
            self._after_commit(kind, device_id, body)

    def refused(self, letter: DeadLetter) -> None:
        """A dead letter is handed to the writer."""
        body = {
            "at": letter.at,
            "topic": letter.topic,
            "reason": letter.reason,
            "error": letter.error,
            "size": len(letter.payload),
        }
        self._after_commit("dead_letter", letter.device_id, body)

    def published(self, device_id: str, name: str, body: dict[str, Any]) -> None:
        """Something is published on one of a device's topics."""
        kind = _PUBLISHED.get(name)
        if kind is not None:
            self._show(kind, device_id, body)

    # ------------------------------------------------------------------ to the listeners

    @contextmanager
    def listen(
        self, kinds: Collection[str] = (), devices: Collection[str] | None = None, after: int | None = None
    ) -> Iterator[Listener]:
        """A listener for as long as the context lasts. `after`: the last number that it has seen; what came since is
        given to it, or a gap."""
        listener = Listener(kinds, devices)
        listener.closed = self._closed
        if not self.listening:
            self._begin()
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        if after is not None:
            self._resume(listener, after)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            if not self._listeners and not self._closed:
                self._lingering = self._loop.call_later(LINGER, self._rest)

    def close(self) -> None:
        """Nothing more will come: listeners go home."""
        self._closed = True
        self._rest()
        for listener in self._listeners:
            listener.closed = True
            listener.wake()

    def _begin(self) -> None:
        # What happened while nobody listened has no numbers; one is left out to tell.
        self._last += 1
        self._before_kept = self._began = self._last
        self._kept.clear()
        self.listening = not self._closed

    def _rest(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        self.listening = False
        self._kept.clear()
        self._waiting.clear()

    def _resume(self, listener: Listener, after: int) -> None:
        if after < self._began or after > self._last:
            listener.miss(None)  # from another run, or from before a time when nobody listened
        elif after < self._before_kept:
            listener.miss(self._before_kept - after)
        for happening in self._kept:
            if happening.id > after or after > self._last:
                listener.offer(happening)

    def _show(self, kind: str, device_id: str | None, body: dict[str, Any]) -> None:
        self._last += 1
        happening = Happening(self._last, kind, device_id, body)
        self._kept.append(happening)
        if len(self._kept) > MAX_KEPT:
            self._before_kept = self._kept.popleft().id
        for listener in self._listeners:
            listener.offer(happening)

    # ------------------------------------------------------------------ once committed

    def _after_commit(self, kind: str, device_id: str | None, body: dict[str, Any]) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append((kind, device_id, body))
        if not self._showing:
            self._showing = True
            self._loop.call_later(SHOWN_EVERY, self._ask)

    def _ask(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        dropped, self._dropped = self._dropped, 0

        def committed(barrier: asyncio.Future[None]) -> None:
            if barrier.cancelled() or isinstance(barrier.exception(), StorageUnavailableError):
                self._showing = False
                return  # the writer has stopped, and so do we
            barrier.result()
            if dropped:
                self._skip(dropped)
            for kind, device_id, body in waiting:
                self._show(kind, device_id, body)
            self._showing = bool(self._waiting)
            if self._showing:
                self._loop.call_later(SHOWN_EVERY, self._ask)

        self._writer.barrier().add_done_callback(committed)

    def _skip(self, count: int) -> None:
        self._last += count
        self._before_kept = self._last
        self._kept.clear()
        for listener in self._listeners:
            listener.miss(count)
            listener.wake()


def _shown(payload: str) -> dict[str, Any]:
    size = len(payload)
    return {"values": msgspec.Raw(payload)} if size <= MAX_VALUES else {"values": None, "size": size}
