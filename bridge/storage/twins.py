"""Twins, and what they have been: every change is read, made and written in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Row, bindparam, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.errors import RefusedError
from bridge.storage import bulk
from bridge.storage.deadletters import storable
from bridge.storage.devices import among
from bridge.storage.prepared import Prepared
from bridge.storage.tables import devices, twin_history, twins
from bridge.twin import Document, Limits, Part, Patch, Twin, difference, merge

MAX_STEPS: Final = 1_000
"""Versions of desired that a device may be behind and still be told only what it misses."""


class Missed(NamedTuple):
    """What a device misses that knows desired as it was in version `since`: a merge patch on that."""

    since: int
    delta: Document


class Change(NamedTuple):
    """What became of a patch; `after` is `before` if that changed nothing."""

    before: Twin
    after: Twin
    missed: Missed | None
    """None if the device did not ask, or misses nothing."""


class Step(NamedTuple):
    """A change as it is remembered: merge patches that lead from the version before to this one, and back. `at` is in
    Unix seconds."""

    version: int
    at: float
    patch: Document
    undo: Document


_ALL: Final = select(
    twins.c.desired,
    twins.c.desired_version,
    twins.c.desired_at,
    twins.c.reported,
    twins.c.reported_version,
    twins.c.reported_at,
)
_ONE: Final = _ALL.where(twins.c.device_id == bindparam("device"))

# A device must be known to be loaded with its twin; most have been heard of before.
_KNOWN: Final[dict[str, Any]] = {name: bindparam(name) for name in ("device_id", "first_seen", "last_seen")}
_MAKE_KNOWN: Final = Prepared(
    sqlite.insert(devices).values(_KNOWN).on_conflict_do_nothing(),
    postgresql.insert(devices).values(_KNOWN).on_conflict_do_nothing(),
)
_MAKE: Final = Prepared(insert(twins).values(device_id=bindparam("device_id")))
_WRITE: Final = {
    part: Prepared(
        update(twins)
        .where(twins.c.device_id == bindparam("device"))
        .values({part.value: bindparam("new"), f"{part}_version": bindparam("version"), f"{part}_at": bindparam("at")})
    )
    for part in Part
}
_REMEMBER: Final = Prepared(
    insert(twin_history).values(
        {name: bindparam(name) for name in ("device_id", "part", "version", "at", "patch", "undo")}
    )
)


def _twin(row: Row[*tuple[Any, ...]]) -> Twin:
    return Twin(
        desired=msgspec.json.decode(row.desired),
        desired_version=row.desired_version,
        desired_at=row.desired_at,
        reported=msgspec.json.decode(row.reported),
        reported_version=row.reported_version,
        reported_at=row.reported_at,
    )


async def get(connection: AsyncConnection, device_id: str) -> Twin | None:
    """A device's twin, None if it never had one."""
    row = (await connection.execute(_ONE, {"device": device_id})).one_or_none()
    return None if row is None else _twin(row)


async def fetch(connection: AsyncConnection, device_ids: list[str]) -> Mapping[str, Twin]:
    """The twins of those of the devices that have one."""
    query = _ALL.add_columns(twins.c.device_id).where(twins.c.device_id.in_(among(connection.dialect.name)))
    ids = {"ids": msgspec.json.encode(device_ids).decode()}
    rows = await connection.execute(query, ids)
    return {row.device_id: _twin(row) for row in rows}


async def change(
    connection: AsyncConnection,
    device_id: str,
    part: Part,
    patch: Patch,
    at: float,
    limits: Limits,
    once: tuple[str, int] | None = None,
) -> Change | RefusedError:
    """Change one part of a device's twin, which is made if need be. `once`: the pair that a QoS 2 message is known by.

    A patch that cannot be accepted is an answer like any other, and leaves the transaction to the others in it: the
    error is returned.
    """
    stored = await get(connection, device_id)
    before = stored or Twin()
    try:
        after = before.patched(part, patch, at, limits)
    except RefusedError as error:
        return error
    if after is not before:
        if stored is None:
            await _make(connection, device_id, at)
        await _write(connection, device_id, part, before, after)
    if once is not None:
        await bulk.insert(connection, [(bulk.INBOUND_ONCE, list(once))])
    missed = None
    if part is Part.REPORTED and patch.version is not None and patch.version != after.desired_version:
        missed = await _missed(connection, device_id, after, patch.version)
    return Change(before, after, missed)


async def _make(connection: AsyncConnection, device_id: str, at: float) -> None:
    await _MAKE_KNOWN.run(connection, {"device_id": device_id, "first_seen": at, "last_seen": at})
    await _MAKE.run(connection, {"device_id": device_id})


async def _write(connection: AsyncConnection, device_id: str, part: Part, before: Twin, after: Twin) -> None:
    old, new = before.part(part), after.part(part)
    version, at = (
        (after.desired_version, after.desired_at)
        if part is Part.DESIRED
        else (after.reported_version, after.reported_at)
    )
    await _WRITE[part].run(connection, {"device": device_id, "new": _json(new), "version": version, "at": at})
    step = {
        "device_id": device_id,
        "part": part.value,
        "version": version,
        "at": at,
        "patch": _json(difference(old, new)),
        "undo": _json(difference(new, old)),
    }
    await _REMEMBER.run(connection, step)


async def _missed(connection: AsyncConnection, device_id: str, twin: Twin, since: int) -> Missed | None:
    behind = twin.desired_version - since
    if 0 < behind <= MAX_STEPS:
        steps = await history(connection, device_id, Part.DESIRED, behind)
        if len(steps) == behind and steps[-1].version == since + 1:
            known = twin.desired
            for step in steps:
                known = merge(known, step.undo)
            delta = difference(known, twin.desired)
            return Missed(since, delta)
    # Too far back, or a version that there never was: all of it.
    return Missed(0, twin.desired)


async def history(
    connection: AsyncConnection, device_id: str, part: Part, limit: int, before: int | None = None
) -> list[Step]:
    """The last changes of a part, the latest first; `before` is the last version of the page before."""
    query = (
        select(twin_history.c.version, twin_history.c.at, twin_history.c.patch, twin_history.c.undo)
        .where(twin_history.c.device_id == device_id, twin_history.c.part == part.value)
        .order_by(twin_history.c.version.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(twin_history.c.version < before)
    return [
        Step(row.version, row.at, msgspec.json.decode(row.patch), msgspec.json.decode(row.undo))
        for row in await connection.execute(query)
    ]


def _json(value: Document) -> str:
    return storable(msgspec.json.encode(value).decode())
