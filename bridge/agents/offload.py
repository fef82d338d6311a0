"""Work that would hold up the event loop, done elsewhere: in other processes, or in threads."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any, Final, TypeVar, final

T = TypeVar("T")

STOP_WITHIN: Final = 2.0
"""Seconds that a worker process has to finish its last work when the bridge stops; then it is ended."""


@final
class Offload:
    """Runs functions in processes (work for the processor) or in threads (libraries that block).

    `workers` of each kind at most, started when they are first needed. So much is under way at a time; whoever comes
    further waits its turn, in order. A caller that is cancelled leaves the queue; a function that is running already
    cannot be stopped, and keeps its worker until it is done.
    """

    def __init__(self, workers: int = 0) -> None:
        """`workers`: 0 for one for each processor but one, and at least one."""
        self._workers: Final = workers or max(1, (os.cpu_count() or 2) - 1)
        self._processes: ProcessPoolExecutor | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._turns = {kind: asyncio.Semaphore(self._workers) for kind in (ProcessPoolExecutor, ThreadPoolExecutor)}
        self.waiting = 0
        """Callers that wait for a free worker."""
        self.running = 0
        """Functions that are being run."""

    async def __call__(self, function: Callable[..., T], *args: Any, threads: bool = False) -> T:
        """What `function(*args)` returns. For a process the function must be defined at the top of a module, and it,
        its arguments and its result must be picklable.

        Raises what the function raises; BrokenProcessPool when its process has died (of too much memory, for example).
        """
        turns = self._turns[ThreadPoolExecutor if threads else ProcessPoolExecutor]
        self.waiting += 1
        try:
            await turns.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            work = self._executor(threads).submit(function, *args)
        except BaseException:
            self._release(turns)
            raise
        # Freed when the function is over, not when its caller has gone away.
        loop = asyncio.get_running_loop()
        work.add_done_callback(lambda _: _call_in(loop, functools.partial(self._release, turns)))
        try:
            return await asyncio.wrap_future(work)
        except BrokenProcessPool:
            self._processes = None  # the next caller starts new ones
            raise

    async def stop(self) -> None:
        """End the workers: what has not begun is cancelled, what runs has STOP_WITHIN seconds."""
        processes, self._processes = self._processes, None
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
        if processes is None:
            return
        workers = list((processes._processes or {}).values())  # there is no other way to end one that does not return
        processes.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*(asyncio.to_thread(_end, worker) for worker in workers))

    def _release(self, turns: asyncio.Semaphore) -> None:
        self.running -= 1
        turns.release()

    def _executor(self, threads: bool) -> Executor:
        if threads:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="offload")
            return self._threads
        if self._processes is None:
            # Not forked: a copy of a process with threads can hang in a lock that nobody will ever free.
            context = multiprocessing.get_context("spawn")
            self._processes = ProcessPoolExecutor(self._workers, context, initializer=_begin)
        return self._processes


def _call_in(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)


def _end(worker: BaseProcess) -> None:
    worker.join(STOP_WITHIN)
    if worker.is_alive():
        worker.kill()
        worker.join()


def _begin() -> None:
    """In a new worker: Ctrl-C is the bridge's to handle, and a bridge that was killed takes its workers with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, name="follow the bridge", daemon=True).start()


def _follow() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
