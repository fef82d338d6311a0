"""The database as somebody else sees it: what is stored, and whether the database itself is sound."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import asyncpg

MESSAGE_IDS = "SELECT message_id FROM telemetry WHERE message_id IS NOT NULL"


class Store(Protocol):
    """A database that a bridge writes to, at `url` as the bridge has it."""

    url: str

    def column(self, query: str) -> list[Any]:
        """The first column of a query's rows."""

    def check(self) -> list[str]:
        """What the database's own check finds wrong; empty for a sound one."""

    def empty(self) -> None:
        """Throw everything away, the tables as well, while no bridge runs."""


class SqliteStore:
    """A database file. Opened anew each time: after a kill, reading it is what repairs it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite+aiosqlite:///{path}"

    def column(self, query: str) -> list[Any]:
        """The first column of a query's rows."""
        connection = sqlite3.connect(self.path, timeout=10)
        try:
            return [row[0] for row in connection.execute(query)]
        finally:
            connection.close()

    def check(self) -> list[str]:
        """SQLite's integrity_check: pages, indexes, and that both say the same."""
        found = [str(line) for line in self.column("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    def empty(self) -> None:
        """Delete the file."""
        for end in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)


class PostgresStore:
    """A PostgreSQL database."""

    def __init__(self, url: str) -> None:
        self.url = url

    def column(self, query: str) -> list[Any]:
        """The first column of a query's rows."""
        return self._with(lambda connection: connection.fetch(query))

    def execute(self, statement: str) -> None:
        """Run one statement."""
        self._with(lambda connection: connection.fetch(statement))

    def empty(self) -> None:
        """Drop all tables."""
        self.execute("DROP SCHEMA public CASCADE")
        self.execute("CREATE SCHEMA public")

    def check(self) -> list[str]:
        """amcheck: that every B-tree is in order and every row of the table is in it."""
        self.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
        try:
            self.column(
                "SELECT bt_index_check(c.oid, heapallindexed => true) FROM pg_index i"
                " JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am am ON am.oid = c.relam"
                " WHERE am.amname = 'btree' AND c.relkind = 'i' AND i.indisvalid"
                " AND c.relnamespace = 'public'::regnamespace"
            )
        except asyncpg.PostgresError as error:
            return [str(error)]
        return []

    def _with(self, ask: Callable[[asyncpg.Connection[asyncpg.Record]], Any]) -> list[Any]:
        async def run() -> list[Any]:
            connection = await asyncpg.connect(self.url.replace("+asyncpg", ""), timeout=10)
            try:
                return [row[0] for row in await ask(connection)]
            finally:
                await connection.close()

        return asyncio.run(run())


def missing(acknowledged: list[str], store: Store) -> tuple[list[str], list[str]]:
    """Of what was acknowledged: the ids that are not stored, and those that are stored more than once."""
    stored = Counter(store.column(MESSAGE_IDS))
    return [found for found in acknowledged if found not in stored], [i for i, n in stored.items() if n > 1]
