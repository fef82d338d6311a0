"""Commands and their history. Every change of a status is guarded by the statuses that it may follow."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from functools import cache
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Row, bindparam, func, insert, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.commands import Command, CommandResponse, CommandStatus
from bridge.storage.deadletters import storable
from bridge.storage.keyset import Keyset, Place
from bridge.storage.prepared import Prepared
from bridge.storage.tables import command_events as events
from bridge.storage.tables import commands

MAX_EVENTS: Final = 100
"""A device may repeat a late answer for ever: it is recorded while the command's history has fewer steps than this."""

_UNFINISHED: Final = tuple(status.value for status in CommandStatus if not status.final)

_COLUMNS: Final = (
    commands.c.command_id,
    commands.c.device_id,
    commands.c.key,
    commands.c.name,
    commands.c.args,
    commands.c.status,
    commands.c.created_at,
    commands.c.expires_at,
    commands.c.updated_at,
    commands.c.attempts,
    commands.c.max_attempts,
    commands.c.retry_after,
    commands.c.rollout_id,
    commands.c.result,
    commands.c.error,
)

_NEW: Final[dict[str, Any]] = {
    column.name: bindparam(column.name) for column in _COLUMNS if column.name not in ("result", "error")
}
_INSERT: Final = Prepared(
    sqlite.insert(commands).values(_NEW).on_conflict_do_nothing(),
    postgresql.insert(commands).values(_NEW).on_conflict_do_nothing(),
)

_RECORD: Final = Prepared(
    insert(events).from_select(
        ["command_id", "seq", "status", "at", "cause", "detail"],
        select(
            bindparam("command_id", type_=events.c.command_id.type),
            func.coalesce(func.max(events.c.seq), 0) + 1,
            bindparam("status", type_=events.c.status.type),
            bindparam("at", type_=events.c.at.type),
            bindparam("cause", type_=events.c.cause.type),
            bindparam("detail", type_=events.c.detail.type),
        ).where(events.c.command_id == bindparam("command_id", type_=events.c.command_id.type)),
    )
)

_FIRST: Final[dict[str, Any]] = {
    "command_id": bindparam("command_id"),
    "seq": 1,
    "status": bindparam("status"),
    "at": bindparam("at"),
    "cause": bindparam("cause"),
}
_STORED: Final = Prepared(insert(events).values(_FIRST))
_STORED_AND_SENT: Final = Prepared(
    insert(events).values(
        [
            _FIRST,
            {
                "command_id": bindparam("command_id"),
                "seq": 2,
                "status": CommandStatus.SENT.value,
                "at": bindparam("sent_at"),
                "cause": bindparam("sent_cause"),
            },
        ]
    )
)

_LAST_SEQ: Final = select(func.coalesce(func.max(events.c.seq), 0)).where(events.c.command_id == bindparam("id"))

_NEWEST: Final = Keyset((commands.c.created_at, commands.c.command_id), descending=True)


class CommandEvent(NamedTuple):
    """One step of a command: `seq` counts from 1, `at` is Unix seconds, `detail` is an error or a late result."""

    seq: int
    status: str
    at: float
    cause: str
    detail: str | None


class FirstAttempt(NamedTuple):
    """A command is sent (`SENT`, one attempt made) as soon as it is stored; `at` is Unix seconds."""

    at: float
    cause: str


async def insert_command(
    connection: AsyncConnection, command: Command, cause: str, first: FirstAttempt | None = None
) -> tuple[Command, bool]:
    """Store a command, or find the one with the same idempotency key of the same device. Returns the stored command
    and whether it is this one. `first`: with its first attempt, which is no part of `command` yet."""
    row = {
        "command_id": command.command_id,
        "device_id": command.device_id,
        "key": command.key,
        "name": command.name,
        "args": _json(command.args),
        "status": (command.status if first is None else CommandStatus.SENT).value,
        "created_at": command.created_at,
        "expires_at": command.expires_at,
        "updated_at": command.updated_at if first is None else first.at,
        "attempts": command.attempts + (first is not None),
        "max_attempts": command.max_attempts,
        "retry_after": command.retry_after,
        "rollout_id": command.rollout_id,
    }
    if await _INSERT.run(connection, row) == 1:
        stored = {
            "command_id": command.command_id,
            "status": command.status.value,
            "at": command.created_at,
            "cause": cause,
        }
        if first is None:
            await _STORED.run(connection, stored)
        else:
            await _STORED_AND_SENT.run(connection, {**stored, "sent_at": first.at, "sent_cause": first.cause})
        return command, True
    query = select(*_COLUMNS).where(commands.c.device_id == command.device_id, commands.c.key == command.key)
    found = _command((await connection.execute(query)).one())
    return found, found.command_id == command.command_id


async def advance_command(
    connection: AsyncConnection,
    command_id: str,
    *,
    expected: AbstractSet[CommandStatus],
    status: CommandStatus,
    at: float,
    cause: str,
    result: Any = None,
    error: str | None = None,
) -> bool:
    """Change the status if the present one is in `expected`; False, and no change, if it is not. There is no further
    attempt (SENT) when as many have been made as there may be."""
    values = {
        "id": command_id,
        "new_status": status.value,
        "at": at,
        "new_result": None if result is None else _json(result),
        "new_error": None if error is None else storable(error),
    }
    if await _advance(frozenset(expected), status is CommandStatus.SENT).run(connection, values) == 0:
        return False
    await _record(connection, command_id, status.value, at, cause, error)
    return True


async def record_late_response(
    connection: AsyncConnection, device_id: str, response: CommandResponse, at: float
) -> bool:
    """Add a response that changes nothing any more to the command's history. False: the device has no such command."""
    # The id is the device's text: one that cannot be stored is the id of no command.
    query = select(commands.c.command_id).where(
        commands.c.command_id == storable(response.id), commands.c.device_id == device_id
    )
    if (await connection.execute(query)).first() is None:
        return False
    if await _last_seq(connection, response.id) >= MAX_EVENTS:
        return True
    detail = response.error
    if detail is None and response.result is not None:
        detail = _json(response.result)
    await _record(connection, response.id, response.status.value, at, "late_response", detail)
    return True


async def get_command(connection: AsyncConnection, command_id: str) -> Command | None:
    """One command, None if there is none with this id."""
    row = (await connection.execute(select(*_COLUMNS).where(commands.c.command_id == command_id))).one_or_none()
    return None if row is None else _command(row)


async def stored_among(connection: AsyncConnection, command_ids: list[str]) -> frozenset[str]:
    """Which of these ids are those of stored commands."""
    query = select(commands.c.command_id).where(commands.c.command_id.in_(command_ids))
    return frozenset((await connection.execute(query)).scalars())


class Wanted(NamedTuple):
    """Which commands to list: all, or those that fit everything that is not None."""

    device_id: str | None = None
    status: CommandStatus | None = None
    rollout_id: str | None = None


async def list_commands(
    connection: AsyncConnection, wanted: Wanted, limit: int, before: Place | None = None
) -> tuple[list[Command], Place | None]:
    """Commands, the newest first, from the one that follows the place `before`, and where the next page begins."""
    given = ((commands.c.rollout_id, wanted.rollout_id), (commands.c.status, wanted.status))
    others = [(column, value) for column, value in given if value is not None]
    along = [column == value for column, value in others]
    beside: list[ColumnElement[bool]] = []
    if wanted.device_id is not None:
        # Not the bare columns: their indexes would lead away from the device's.
        beside = [func.coalesce(column, "") == value for column, value in others]
        along = [commands.c.device_id == wanted.device_id]
    rows, end = await _NEWEST.page(connection, select(*_COLUMNS), limit, before, along=along, beside=beside)
    return [_command(row) for row in rows], end


async def open_commands(connection: AsyncConnection) -> list[Command]:
    """All unfinished commands, oldest first."""
    query = (
        select(*_COLUMNS)
        .where(commands.c.status.in_(_UNFINISHED))
        .order_by(commands.c.created_at, commands.c.command_id)
    )
    return [_command(row) for row in await connection.execute(query)]


async def command_events(connection: AsyncConnection, command_id: str, after_seq: int = 0) -> list[CommandEvent]:
    """A command's history in order, from the step that follows `after_seq`."""
    query = (
        select(events.c.seq, events.c.status, events.c.at, events.c.cause, events.c.detail)
        .where(events.c.command_id == command_id, events.c.seq > after_seq)
        .order_by(events.c.seq)
    )
    return [CommandEvent(*row) for row in await connection.execute(query)]


async def with_events(
    connection: AsyncConnection, command_id: str, after_seq: int
) -> tuple[Command, list[CommandEvent]] | None:
    """A command and its history from the step that follows `after_seq`, as they were at one moment: in one statement,
    as another transaction may commit between two. None if there is no command with this id."""
    query = (
        select(*_COLUMNS, events.c.seq, events.c.status, events.c.at, events.c.cause, events.c.detail)
        .select_from(
            commands.outerjoin(events, (events.c.command_id == commands.c.command_id) & (events.c.seq > after_seq))
        )
        .where(commands.c.command_id == command_id)
        .order_by(events.c.seq)
    )
    rows = (await connection.execute(query)).all()
    if not rows:
        return None
    width = len(_COLUMNS)
    return _command(rows[0]), [CommandEvent(*row[width:]) for row in rows if row[width] is not None]


async def _record(
    connection: AsyncConnection, command_id: str, status: str, at: float, cause: str, detail: str | None
) -> None:
    values = {
        "command_id": command_id,
        "status": status,
        "at": at,
        "cause": cause,
        "detail": None if detail is None else storable(detail),
    }
    await _RECORD.run(connection, values)


async def _last_seq(connection: AsyncConnection, command_id: str) -> int:
    return int((await connection.execute(_LAST_SEQ, {"id": command_id})).scalar_one())


@cache  # one for each status that there is
def _advance(expected: frozenset[CommandStatus], sent: bool) -> Prepared:
    """The guarded UPDATE to a status that may follow those in `expected`; `sent`: it is another attempt."""
    guard = [
        commands.c.command_id == bindparam("id"),
        # Written out: they are ours, and a list of unknown length cannot be compiled once.
        commands.c.status.in_([literal_column(f"'{status.value}'") for status in sorted(expected)]),
    ]
    values: dict[Any, Any] = {
        "status": bindparam("new_status"),
        "updated_at": bindparam("at"),
        "result": func.coalesce(bindparam("new_result", type_=commands.c.result.type), commands.c.result),
        "error": func.coalesce(bindparam("new_error", type_=commands.c.error.type), commands.c.error),
    }
    if sent:
        guard.append(commands.c.attempts < commands.c.max_attempts)
        values["attempts"] = commands.c.attempts + 1
    return Prepared(update(commands).where(*guard).values(values))


def _json(value: Any) -> str:
    return storable(msgspec.json.encode(value).decode())


def _command(row: Row[*tuple[Any, ...]]) -> Command:
    command = Command(**{column.name: value for column, value in zip(_COLUMNS, row, strict=False)})
    command.args = msgspec.json.decode(row.args)
    command.status = CommandStatus(command.status)
    command.result = None if row.result is None else msgspec.json.decode(row.result)
    return command
