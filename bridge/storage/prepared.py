"""Statements that are compiled once.

To build one, to find it among those that SQLAlchemy has compiled, and what is made around each run take ten times as
long as to run it on SQLite: all that in the writer's thread, while an operator waits and the event loop has no
interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, final

from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import UpdateBase

from bridge.storage.direct import DirectConnection

_SQLITE: Final = sqlite.dialect()


@final
class Prepared:
    """A statement that changes rows. In the thread of SQLite it goes straight to the driver.

    All columns are named in it, with a `bindparam` each or a value. `on_postgres`: the same for PostgreSQL, where that
    is another.
    """

    def __init__(self, statement: UpdateBase, on_postgres: UpdateBase | None = None) -> None:
        self._statement = statement
        self._on_postgres = statement if on_postgres is None else on_postgres
        compiled = statement.compile(dialect=_SQLITE)
        self._sql: Final = compiled.string
        self._fixed: Final = {name: value for name, value in compiled.params.items() if value is not None}
        self._names: Final = tuple(compiled.positiontup or ())

    async def run(self, connection: AsyncConnection, values: Mapping[str, Any]) -> int:
        """Run it; how many rows it has changed."""
        if isinstance(connection, DirectConnection):
            known = {**self._fixed, **values}
            return connection.raw.execute(self._sql, [known[name] for name in self._names]).rowcount
        statement = self._on_postgres if connection.dialect.name == "postgresql" else self._statement
        return (await connection.execute(statement, values)).rowcount
