"""How SQLite answers what it is asked. Its plans do not depend on how many rows there are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.storage.database import Database


async def plans(database: Database, ask: Callable[[AsyncConnection], Awaitable[object]]) -> list[list[str]]:
    """The steps of each of the statements that a question is made of."""

    async def explain(connection: AsyncConnection) -> list[list[str]]:
        statements: list[tuple[str, Any]] = []

        def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            statements.append((statement, parameters))

        event.listen(connection.sync_connection, "before_cursor_execute", note)
        await ask(connection)
        event.remove(connection.sync_connection, "before_cursor_execute", note)
        return [
            [row.detail for row in await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            for statement, parameters in statements
        ]

    return await database.read(explain)
