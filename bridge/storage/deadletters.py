"""Dead letters: messages that could not be taken, kept with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, final

import msgspec
from sqlalchemy import LargeBinary, Select, delete, func, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.storage.tables import dead_letters

MAX_PAYLOAD: Final = 1_048_576
"""Bytes of the payload that are kept: four times the largest packet that the broker takes unless told otherwise."""
SHOWN: Final = 4_096
"""Bytes of each payload that a list shows."""
MAX_TEXT: Final = 2_000
"""Characters of the error that are kept."""
MAX_TOPIC: Final = 65_535
"""What MQTT allows (MQTT 3.1.1, 1.5.3), in bytes."""


@final
class DeadLetter(msgspec.Struct):
    """A message that was refused. `reason` is a fixed word, `error` says what exactly; `at` is Unix seconds.

    `id` and `size` (of the whole payload) are given when it is stored.
    """

    at: float
    topic: str
    device_id: str | None
    reason: str
    error: str
    payload: bytes
    id: int = 0
    size: int = 0

    def values(self, row_id: int) -> tuple[Any, ...]:
        """The row, in a form that every database can store whatever was received."""
        return (
            row_id,
            self.at,
            storable(self.topic)[:MAX_TOPIC],
            None if self.device_id is None else storable(self.device_id),
            self.reason,
            storable(self.error[:MAX_TEXT]),
            self.payload[:MAX_PAYLOAD],
            self.size or len(self.payload),
        )


def storable(text: str) -> str:
    """`text` without what PostgreSQL or UTF-8 cannot hold: NUL and lone surrogates become U+FFFD."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


_COLUMNS: Final = (
    dead_letters.c.at,
    dead_letters.c.topic,
    dead_letters.c.device_id,
    dead_letters.c.reason,
    dead_letters.c.error,
    dead_letters.c.payload,
    dead_letters.c.id,
    dead_letters.c.size,
)


def _narrowed(query: Select[Any], reason: str | None, device_id: str | None) -> Select[Any]:
    if reason is not None:
        query = query.where(dead_letters.c.reason == storable(reason))
    if device_id is not None:
        query = query.where(dead_letters.c.device_id == storable(device_id))
    return query


async def list_dead_letters(
    connection: AsyncConnection,
    limit: int,
    before: int | None = None,
    *,
    reason: str | None = None,
    device_id: str | None = None,
    shown: int = MAX_PAYLOAD,
) -> list[DeadLetter]:
    """The latest first; `before` is the last id of the page before. With `reason` or `device_id` only those. Of each
    payload the first `shown` bytes: a thousand whole ones may be a gigabyte."""
    # SQLite's part of an empty blob is NULL.
    payload = func.coalesce(func.substr(dead_letters.c.payload, 1, shown), literal(b"", LargeBinary), type_=LargeBinary)
    columns = [payload if column is dead_letters.c.payload else column for column in _COLUMNS]
    query = _narrowed(select(*columns), reason, device_id).order_by(dead_letters.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(dead_letters.c.id < before)
    return [DeadLetter(*row) for row in await connection.execute(query)]


async def oldest(
    connection: AsyncConnection, limit: int, *, reason: str | None = None, device_id: str | None = None
) -> list[int]:
    """The ids of the oldest letters, the oldest first. With `reason` or `device_id` only of those."""
    query = _narrowed(select(dead_letters.c.id), reason, device_id).order_by(dead_letters.c.id).limit(limit)
    return list((await connection.execute(query)).scalars())


async def get_dead_letters(connection: AsyncConnection, letter_ids: Sequence[int]) -> list[DeadLetter]:
    """Those of the letters that there are, the oldest first."""
    query = select(*_COLUMNS).where(dead_letters.c.id.in_(letter_ids)).order_by(dead_letters.c.id)
    return [DeadLetter(*row) for row in await connection.execute(query)]


async def get_dead_letter(connection: AsyncConnection, letter_id: int) -> DeadLetter | None:
    """One dead letter, None if there is none with this id."""
    row = (await connection.execute(select(*_COLUMNS).where(dead_letters.c.id == letter_id))).one_or_none()
    return None if row is None else DeadLetter(*row)


async def delete_dead_letter(connection: AsyncConnection, letter_id: int) -> bool:
    """Whether there was one with this id."""
    result = await connection.execute(delete(dead_letters).where(dead_letters.c.id == letter_id))
    return result.rowcount == 1


async def count_dead_letters(connection: AsyncConnection) -> int:
    """How many there are."""
    return (await connection.execute(select(func.count()).select_from(dead_letters))).scalar_one()
