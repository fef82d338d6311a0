"""Somebody else who looks at the database, with the plain drivers: what they see is committed."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any, Protocol

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.storage.writer import Writer


class Witness(Protocol):
    """A connection that is not the bridge's."""

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What a query returns."""

    async def execute(self, sql: str) -> None:
        """Run one statement."""

    async def close(self) -> None:
        """End the connection."""


class SqliteWitness:
    """On SQLite. Transactions only where a test begins them. In a thread: where it waits for the bridge's own
    transaction, the bridge must be able to go on."""

    def __init__(self, url: str) -> None:
        path = url.removeprefix("sqlite+aiosqlite:///")
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What a query returns."""
        return await asyncio.to_thread(lambda: self._connection.execute(sql).fetchall())

    async def execute(self, sql: str) -> None:
        """Run one statement."""
        await asyncio.to_thread(self._connection.execute, sql)

    async def close(self) -> None:
        """End the connection."""
        self._connection.close()


class PostgresWitness:
    """On PostgreSQL."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What a query returns."""
        return [tuple(record.values()) for record in await self._connection.fetch(sql)]

    async def execute(self, sql: str) -> None:
        """Run one statement."""
        await self._connection.execute(sql)

    async def close(self) -> None:
        """End the connection."""
        await self._connection.close()


async def nothing(_connection: AsyncConnection) -> None:
    """A change that changes nothing."""


async def committed(writer: Writer) -> None:
    """Return when everything handed over so far is committed; fail if it is not within 20 seconds."""
    async with asyncio.timeout(20.0):
        await writer.barrier()
