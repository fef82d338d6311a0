"""What is committed, read in the order of the commits from a position on: for those who pass it on."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import BigInteger, Select, bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.storage.tables import command_events, commands, cursors, presence, telemetry


class Source(enum.StrEnum):
    """A table whose rows are numbered in the order of the commits."""

    TELEMETRY = "telemetry"
    """Readings and events."""
    PRESENCE = "presence"
    COMMANDS = "commands"
    """Each step of each command."""


class Record(NamedTuple):
    """Something that is committed. `number` is its place in its source; times are Unix seconds; `body` is JSON."""

    source: Source
    number: int
    device_id: str
    name: str
    """The stream of a reading, `event/…` for an event, the new status of a device or of a command."""
    at: float
    """When it was measured, or happened."""
    stored_at: float
    """When the bridge learned of it."""
    body: str

    @property
    def kind(self) -> str:
        """`telemetry`, `event`, `presence` or `command`."""
        if self.source is Source.TELEMETRY:
            return "event" if self.name.startswith("event/") else "telemetry"
        return "presence" if self.source is Source.PRESENCE else "command"

    @property
    def key(self) -> str:
        """The same for the same record, however often it is passed on: a receiver's idempotency key."""
        return f"{self.source}-{self.number}"


_NUMBERS: Final = {
    Source.TELEMETRY: telemetry.c.id,
    Source.PRESENCE: presence.c.id,
    Source.COMMANDS: command_events.c.id,
}

_MOVE: Final = text(
    "INSERT INTO cursors (name, position) VALUES (:name, :position)"
    " ON CONFLICT (name) DO UPDATE SET position = excluded.position"
).bindparams(bindparam("position", type_=BigInteger))


async def after(connection: AsyncConnection, source: Source, number: int, limit: int) -> list[Record]:
    """The next records of a source, at most `limit`."""
    rows = await connection.execute(_QUERIES[source], {"number": number, "limit": limit})
    return [_RECORDS[source](*row) for row in rows]


def _reading(number: int, device_id: str, stream: str, ts: float, received_at: float, payload: str) -> Record:
    return Record(Source.TELEMETRY, number, device_id, stream, ts, received_at, payload)


def _transition(number: int, device_id: str, status: str, at: float, cause: str, epoch: int) -> Record:
    body = {"status": status, "cause": cause, "epoch": epoch, "at": at}
    return Record(Source.PRESENCE, number, device_id, status, at, at, _json(body))


def _step(
    number: int,
    device_id: str,
    status: str,
    at: float,
    command_id: str,
    key: str,
    name: str,
    cause: str,
    detail: str | None,
) -> Record:
    body = {"id": command_id, "key": key, "name": name, "status": status, "at": at, "cause": cause, "detail": detail}
    return Record(Source.COMMANDS, number, device_id, status, at, at, _json(body))


_RECORDS: Final[dict[Source, Callable[..., Record]]] = {
    Source.TELEMETRY: _reading,
    Source.PRESENCE: _transition,
    Source.COMMANDS: _step,
}


def _next(query: Select[Any], source: Source) -> Select[Any]:
    number = _NUMBERS[source]
    return query.where(number > bindparam("number", type_=BigInteger)).order_by(number).limit(bindparam("limit"))


_QUERIES: Final = {
    Source.TELEMETRY: _next(
        select(
            telemetry.c.id,
            telemetry.c.device_id,
            telemetry.c.stream,
            telemetry.c.ts,
            telemetry.c.received_at,
            telemetry.c.payload,
        ),
        Source.TELEMETRY,
    ),
    Source.PRESENCE: _next(
        select(
            presence.c.id, presence.c.device_id, presence.c.status, presence.c.at, presence.c.cause, presence.c.epoch
        ),
        Source.PRESENCE,
    ),
    Source.COMMANDS: _next(
        select(
            command_events.c.id,
            commands.c.device_id,
            command_events.c.status,
            command_events.c.at,
            command_events.c.command_id,
            commands.c.key,
            commands.c.name,
            command_events.c.cause,
            command_events.c.detail,
        ).join(commands, commands.c.command_id == command_events.c.command_id),
        Source.COMMANDS,
    ),
}


async def newest(connection: AsyncConnection, source: Source) -> int:
    """The number of the last record of a source, 0 if there is none."""
    return int((await connection.execute(select(func.coalesce(func.max(_NUMBERS[source]), 0)))).scalar_one())


async def position(connection: AsyncConnection, name: str) -> int | None:
    """How far the reader `name` has come; None if nobody has read under this name."""
    found = await connection.execute(select(cursors.c.position).where(cursors.c.name == name))
    number = found.scalar()
    return None if number is None else int(number)


async def move(connection: AsyncConnection, positions: Mapping[str, int]) -> None:
    """Note how far readers have come."""
    rows = [{"name": name, "position": number} for name, number in positions.items()]
    await connection.execute(_MOVE, rows)


def _json(body: dict[str, Any]) -> str:
    return msgspec.json.encode(body).decode()
