"""A TCP proxy that can be as bad as a network: late, silent, cut, or dripping single bytes."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Self

from tests.servers import HOST

DRIP = 0.0002
"""Seconds between two bytes."""


class Proxy:
    """Passes connections on to `target`, a port of this machine, from a thread of its own; a context manager.

    What it does to bytes may be changed at any time, for open connections as well:
    `delay` seconds for every piece in each direction, `drip` one byte at a time, `stalled` nothing passes.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.delay = 0.0
        self.drip = False
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join(10)

    # ------------------------------------------------------------------ what a test does to it

    def stall(self) -> None:
        """From now on nothing passes; connections stay open."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def flow(self) -> None:
        """Everything passes again, also what has waited."""
        self._loop.call_soon_threadsafe(self._flows.set)

    def reset(self) -> None:
        """Cut every connection with a TCP reset."""
        self._loop.call_soon_threadsafe(self._reset)

    # ------------------------------------------------------------------ on its own thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, HOST, 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        try:
            self._loop.run_forever()
        finally:
            server.close()
            self._loop.run_until_complete(asyncio.gather(*self._pipes, return_exceptions=True))
            self._loop.close()

    def _end(self) -> None:
        self._flows.set()
        for pipe in self._pipes:
            pipe.cancel()
        self._loop.stop()

    def _reset(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(HOST, self._target)
        except OSError:
            writer.transport.abort()
            return
        for source, sink in ((reader, back), (there, writer)):
            self._writers.add(sink)
            pipe = self._loop.create_task(self._pass_on(source, sink))
            self._pipes.add(pipe)
            pipe.add_done_callback(self._pipes.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                await self._flows.wait()
                if self.delay:
                    await asyncio.sleep(self.delay)
                pieces = (data[n : n + 1] for n in range(len(data))) if self.drip else (data,)
                for piece in pieces:
                    sink.write(piece)
                    await sink.drain()
                    if self.drip:
                        await asyncio.sleep(DRIP)
        except OSError:
            pass  # either side is gone, and so is the other below
        finally:
            self._writers.discard(sink)
            sink.close()
