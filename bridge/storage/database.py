"""One database: a pool that reads, one connection that writes, and one breaker in front of both."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Self, TypeVar, final

from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncTransaction
from sqlalchemy.pool import QueuePool
from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

from bridge.breaker import Breaker
from bridge.errors import CircuitOpenError, StartError, StorageUnavailableError
from bridge.storage import direct, engine
from bridge.storage.direct import DirectConnection, Visits
from bridge.storage.faults import is_driver_error, is_retriable, wrap, wrap_at_start
from bridge.storage.lock import FileLock, HeldError
from bridge.storage.retries import retried

T = TypeVar("T")

RETRY_FOR: Final = 5.0
"""Seconds that `read` and `write` go on trying before the caller hears of it."""
_TAKEOVER_FOR: Final = 3.0
"""Seconds that a start waits for the lock: a PostgreSQL server needs a moment to see that a killed bridge is gone."""

MAINTENANCE_LOCK: Final = 1.0
"""Seconds that housekeeping waits for a lock on PostgreSQL: who waits for a table holds up those who come after."""

_GOODBYE: Final = 1.0
"""Seconds for closing each of the two pools."""

backoff: Final = wait_random_exponential(multiplier=0.05, max=2.0)
"""Exponential with full jitter: up to 0.05 s, 0.1 s, 0.2 s ... 2 s."""


def _worth_a_retry(error: BaseException) -> bool:
    # An open breaker has just said that it is not worth it.
    return isinstance(error, StorageUnavailableError) and not isinstance(error, CircuitOpenError)


@final
class Database:
    """Made by `open`, or by `prepare` and then `connect`. `read` and `write` retry what may go away by itself, each
    attempt inside the breaker.

    They raise StorageUnavailableError when the time is over, CircuitOpenError (one of those) at once while the
    breaker is open, and StorageError for what the database refuses for good. Other exceptions of the function that
    they are given pass through unchanged.
    """

    def __init__(
        self,
        url: URL,
        readers: AsyncEngine,
        writer: AsyncEngine,
        pool_size: int,
        clock: Callable[[], float],
        *,
        exclusive: bool,
    ) -> None:
        self.dialect: Final = engine.dialect_of(url)
        # Five seconds at most: to ask a database of one's own every five seconds costs nothing, and every second
        # longer is a second in which devices wait for nothing.
        self.breaker: Final = Breaker(
            "database", counted=StorageUnavailableError, clock=clock, failures=5, open_for=1.0, max_open=5.0
        )
        self.pool_size: Final = pool_size
        """Connections that read at the same time at most."""
        self._url = url
        self._exclusive = exclusive
        self._readers = readers
        self._writer = writer
        self._lock: FileLock | None = None
        # The pool's own queue has a time limit whose error looks like a sick database.
        self._read_slots = asyncio.Semaphore(pool_size)
        self._write_turn = asyncio.Lock()
        self._connection: AsyncConnection | None = None
        self._direct: DirectConnection | None = None
        on_sqlite = self.dialect == "sqlite"
        self._lookups = Visits(engine.reader_engine(url, 1)) if on_sqlite else None
        self._checkpoints = Visits(engine.reader_engine(url, 1)) if on_sqlite else None

    @classmethod
    async def open(
        cls,
        url: str,
        pool_size: int = 5,
        clock: Callable[[], float] = time.monotonic,
        *,
        exclusive: bool = True,
    ) -> Self:
        """The same as `prepare` and `connect`, with their errors."""
        database = cls.prepare(url, pool_size, clock, exclusive=exclusive)
        try:
            await database.connect()
        except BaseException:
            await database.close()
            raise
        return database

    @classmethod
    def prepare(
        cls, url: str, pool_size: int = 5, clock: Callable[[], float] = time.monotonic, *, exclusive: bool = True
    ) -> Self:
        """A database that nobody has reached yet. `exclusive`: only one bridge at a time may write to it. Raises
        StartError when the URL is wrong."""
        parsed = engine.parse(url)
        return cls(
            parsed,
            engine.reader_engine(parsed, pool_size),
            engine.writer_engine(parsed, exclusive=exclusive),
            pool_size,
            clock,
            exclusive=exclusive,
        )

    async def connect(self) -> None:
        """Reach it, and where it is exclusive become the only bridge on it. May be called again after an error.

        Raises DatabaseAwayError: it cannot be reached; StartError: something else is wrong, or another bridge holds it.
        """
        if self._connection is not None:
            return
        path = engine.sqlite_path(self._url) if self.dialect == "sqlite" else None
        if path is not None:
            if not path.absolute().parent.is_dir():
                raise StartError(f"database: the folder {path.absolute().parent} does not exist")
            if self._exclusive and self._lock is None:
                lock = FileLock(path)
                lock.acquire()
                self._lock = lock
        deadline = time.monotonic() + _TAKEOVER_FOR
        while True:
            try:
                self._connection = await self._writer.connect()
            except HeldError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)
            except Exception as error:
                if not is_driver_error(error):
                    raise
                raise wrap_at_start(error, f"database {self._url.render_as_string()}") from error
            else:
                return

    async def close(self) -> None:
        """Close all connections and let go of the lock."""
        async with self._write_turn:
            await self._forget_writer()
        for visits in (self._lookups, self._checkpoints):
            if visits is not None:
                await visits.close()
        for pool in (self._readers, self._writer):
            try:
                async with asyncio.timeout(_GOODBYE):
                    await pool.dispose()
            except TimeoutError:
                # A server that does not even take leave: the process's end will close the sockets.
                await pool.dispose(close=False)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def reading(self) -> int:
        """Connections of the pool that are in use."""
        pool = self._readers.pool
        return pool.checkedout() if isinstance(pool, QueuePool) else 0

    async def ping(self) -> None:
        """One attempt to ask the database something, for health checks. Raises StorageUnavailableError."""
        await self.attempt(lambda: self._read_once(lambda connection: connection.execute(text("SELECT 1"))))

    async def read(self, fn: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `fn`, which must only read, on a connection of the pool. `fn` may be called more than once."""
        return await self._retrying(self.attempt, lambda: self._read_once(fn))

    async def look_up(self, fn: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """As `read`, for what messages and clients wait for: on SQLite in one visit to the thread of a connection that
        is kept for it, and past the breaker, as what holds up the writer there does not hold up readers. There `fn`
        must wait for nothing but the connection, and is not on the event loop."""
        lookups = self._lookups
        if lookups is None:
            return await self.read(fn)
        return await self._retrying(_wrapped, lambda: lookups.read(fn))

    async def checkpoint(self, *, alone: bool = False) -> tuple[int, int]:
        """SQLite only: carry the log into the database file, as far as readers allow, while commits go on; `alone`:
        between two of them, so that the next one may begin the log anew. How many pages are in the log, and how many of
        those are in the file now. One attempt; driver errors come unwrapped."""
        if self._checkpoints is None:
            return 0, 0
        if not alone:
            return await self._checkpoints.read(_checkpoint)
        async with self._write_turn:
            return await self._checkpoints.read(_checkpoint)

    async def write(self, fn: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `fn` in one transaction of the writing connection. `fn` may be called more than once, and when the
        answer to a COMMIT is lost its effect may have taken place before the call that succeeds."""

        async def once() -> T:
            async with self.transaction() as connection:
                return await fn(connection)

        return await self._retrying(self.attempt, once)

    async def maintain(self, fn: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `fn` in one transaction beside the writer's: housekeeping that nobody waits for. One attempt.

        On PostgreSQL it has a connection of the pool and waits at most MAINTENANCE_LOCK seconds for a lock; SQLite has
        one writer at a time, so there `fn` must be short: the next batch waits for it.
        """

        async def beside() -> T:
            async with self._readers.begin() as connection:
                await connection.execute(text("SET TRANSACTION READ WRITE"))
                await connection.execute(text(f"SET LOCAL lock_timeout = '{MAINTENANCE_LOCK:g}s'"))
                return await fn(connection)

        async def between() -> T:
            async with self.transaction() as connection:
                return await fn(connection)

        return await self.attempt(beside if self.dialect == "postgresql" else between)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """One transaction on the writing connection, without breaker or retry. Driver errors come unwrapped.

        It is committed when the block ends. After an error nobody knows what state the connection is in, so it is
        replaced, unless the error is the block's own and the rollback succeeds.
        """
        async with self._write_turn:
            connection = self._connection
            if connection is None:
                connection = self._connection = await self._connect_writer()
            transaction = None
            try:
                transaction = await connection.begin()
                yield connection
                await transaction.commit()
            except BaseException as error:
                # Cancelled, or gone: no ROLLBACK, whose answer may take as long as the one that did not come.
                if transaction is None or not isinstance(error, Exception) or is_retriable(error):
                    await self._forget_writer()
                else:
                    await self._roll_back(transaction)
                raise

    async def transact(self, fn: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `fn` in one transaction on the writing connection, as `transaction` does, on SQLite in one visit to the
        connection's thread: `fn` must wait for nothing but the connection, and is not on the event loop."""
        if self.dialect != "sqlite":
            async with self.transaction() as ours:
                return await fn(ours)
        async with self._write_turn:
            connection = self._connection
            if connection is None:
                connection = self._connection = await self._connect_writer()
            driver: Any = (await connection.get_raw_connection()).driver_connection

            def visit(raw: sqlite3.Connection) -> T:
                if self._direct is None or self._direct.raw is not raw:
                    self._direct = DirectConnection(raw)
                return direct.run(self._direct, fn)

            try:
                # Not public in aiosqlite; see bulk.
                result: T = await driver._execute(visit, driver._conn)
            except BaseException as error:
                if not isinstance(error, Exception) or is_retriable(error):
                    await self._forget_writer()
                raise
            return result

    async def attempt(self, fn: Callable[[], Awaitable[T]]) -> T:
        """Run `fn` once inside the breaker, with driver errors wrapped."""
        with self.breaker.call():
            return await _wrapped(fn)

    async def _read_once(self, fn: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async with self._readers.connect() as connection:
            try:
                return await fn(connection)
            except BaseException as error:
                # After a timeout or a cancellation the answer to the old question may still come.
                if not isinstance(error, Exception) or is_retriable(error):
                    await connection.invalidate()
                raise

    async def _retrying(
        self, attempt: Callable[[Callable[[], Awaitable[T]]], Awaitable[T]], once: Callable[[], Awaitable[T]]
    ) -> T:
        began = time.monotonic()

        def policy() -> AsyncRetrying:
            return AsyncRetrying(
                retry=retry_if_exception(_worth_a_retry),
                wait=backoff,
                stop=lambda _state: time.monotonic() - began >= RETRY_FOR,
                reraise=True,
            )

        return await retried(lambda: attempt(once), policy)

    async def _connect_writer(self) -> AsyncConnection:
        try:
            return await self._writer.connect()
        except HeldError as error:
            # Our session is gone, and its lock is held by a session that the server still believes in, or by
            # another bridge. Either way nothing may be written now.
            raise StorageUnavailableError(str(error)) from error
        except Exception as error:
            # No row is to blame for a connection that cannot be made, whatever the reason.
            raise StorageUnavailableError(str(wrap(error))) from error

    async def _roll_back(self, transaction: AsyncTransaction) -> None:
        try:
            await transaction.rollback()
        except Exception as error:
            if not is_driver_error(error):
                raise
            # The error that led here says more than this one.
            await self._forget_writer()

    async def _forget_writer(self) -> None:
        connection, self._connection = self._connection, None
        self._direct = None
        if connection is None:
            return
        try:
            await connection.invalidate()
            await connection.close()
        except Exception as error:
            if not is_driver_error(error):
                raise


async def _wrapped(fn: Callable[[], Awaitable[T]]) -> T:
    try:
        return await fn()
    except Exception as error:
        if not is_driver_error(error):
            raise
        raise wrap(error) from error


async def _checkpoint(connection: AsyncConnection) -> tuple[int, int]:
    # PASSIVE waits for nobody, and nobody for it.
    _busy, pages, carried = (await connection.execute(text("PRAGMA wal_checkpoint(PASSIVE)"))).all()[0]
    return pages, carried
