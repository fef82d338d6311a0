"""A whole transaction in one visit to SQLite's thread.

aiosqlite runs every statement in its connection's thread, and SQLAlchemy takes three or four such hops for each. The
answer to a hop waits for its turn on the event loop; a command with its history took 25 of them, which beside full
ingest was most of the time that an operator waited. Here the coroutine that talks to the database is run in that
thread, to its end, with a connection on which nothing ever waits.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar, cast, final

from sqlalchemy import Connection, Executable, StaticPool, create_engine
from sqlalchemy.engine import CursorResult, Dialect
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bridge.storage.faults import is_retriable

T = TypeVar("T")


@final
class DirectConnection:
    """As much of an AsyncConnection as the writer's changes use; its coroutines are done at their first step. Made and
    used in the thread of `raw`."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self.raw: Final = raw
        # No reset and no BEGIN of their own: the transaction is the visit's.
        engine = create_engine("sqlite://", creator=lambda: raw, poolclass=StaticPool, pool_reset_on_return=None)
        self._connection: Final[Connection] = engine.connect()
        self.dialect: Final[Dialect] = engine.dialect

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """See AsyncConnection."""
        return self._connection.execute(statement, parameters)

    async def exec_driver_sql(self, statement: str, parameters: Any = None) -> CursorResult[Any]:
        """See AsyncConnection."""
        return self._connection.exec_driver_sql(statement, parameters)

    async def scalar(self, statement: Executable, parameters: Any = None) -> Any:
        """See AsyncConnection."""
        return self._connection.scalar(statement, parameters)

    async def scalars(self, statement: Executable, parameters: Any = None) -> Sequence[Any]:
        """See AsyncConnection; a list, which is all that is needed of it."""
        return self._connection.scalars(statement, parameters).all()

    @asynccontextmanager
    async def begin_nested(self) -> AsyncIterator[None]:
        """A savepoint, rolled back if the block raises."""
        with self._connection.begin_nested():
            yield


@final
class Visits:
    """Reads in SQLite, each time in one visit to the thread of a connection that is there for nothing else. It is made
    when it is first needed, and anew after an error that leaves its state in doubt."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._turn = asyncio.Lock()
        self._connection: AsyncConnection | None = None
        self._driver: Any = None
        self._direct: DirectConnection | None = None

    async def read(self, fn: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `fn`, which must wait for nothing but its connection, and is not on the event loop. Driver errors come
        unwrapped."""
        async with self._turn:
            if self._connection is None:
                self._connection = await self._engine.connect()
                self._driver = (await self._connection.get_raw_connection()).driver_connection
            try:
                # Not public in aiosqlite; see bulk.
                result: T = await self._driver._execute(self._visit, fn)
            except BaseException as error:
                if not isinstance(error, Exception) or is_retriable(error):
                    await self._forget()
                raise
            return result

    def _visit(self, fn: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        if self._direct is None:
            self._direct = DirectConnection(self._driver._conn)
        return _to_its_end(fn(cast("AsyncConnection", self._direct)))

    async def _forget(self) -> None:
        connection, self._connection, self._direct = self._connection, None, None
        if connection is not None:
            await connection.invalidate()
            await connection.close()

    async def close(self) -> None:
        """Close the connection."""
        async with self._turn:
            await self._forget()
        await self._engine.dispose()


def run(connection: DirectConnection, fn: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """Run `fn` in one transaction: committed when it returns, rolled back when it raises."""
    raw = connection.raw
    # IMMEDIATE: to wait for another writer at the beginning, where nothing is lost yet.
    raw.execute("BEGIN IMMEDIATE")
    try:
        result = _to_its_end(fn(cast("AsyncConnection", connection)))
        raw.execute("COMMIT")
    except BaseException:
        # Some errors have ended the transaction already.
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        raise
    return result


def _to_its_end(awaitable: Awaitable[T]) -> T:
    steps = cast("Generator[Any, None, T]", awaitable.__await__())
    try:
        next(steps)
        while True:
            # Raised where it waits, so that the one change is refused that does.
            steps.throw(RuntimeError("a change must wait for nothing but its connection"))
    except StopIteration as stop:
        return cast("T", stop.value)
