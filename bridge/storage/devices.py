"""What is stored about devices, and the loader that brings it back to their agents."""

from __future__ import annotations

from typing import Any, Final, final

import msgspec
from sqlalchemy import Row, Select, TextClause, func, insert, literal, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.presence import Status
from bridge.storage.database import Database
from bridge.storage.loader import Loader
from bridge.storage.tables import devices, presence


@final
class DeviceSnapshot(msgspec.Struct, gc=False):
    """A device's row. Times are Unix seconds; `state` is the agent's JSON, empty before there is any."""

    device_id: str
    profile: str = "default"
    first_seen: float = 0.0
    last_seen: float = 0.0
    messages: int = 0
    status: str = Status.UNKNOWN.value
    epoch: int = 0
    state: str = ""
    admission: str = "accepted"


_PRESENT: Final = (Status.ONLINE.value, Status.SILENT.value)


def _snapshots() -> Select[Any]:
    return select(
        devices.c.device_id,
        devices.c.profile,
        devices.c.first_seen,
        devices.c.last_seen,
        devices.c.messages,
        devices.c.status,
        devices.c.epoch,
        devices.c.state,
        devices.c.admission,
    )


def _snapshot(row: Row[*tuple[Any, ...]]) -> DeviceSnapshot:
    snapshot = DeviceSnapshot(**row._mapping)
    snapshot.state = snapshot.state or ""
    return snapshot


async def load_devices(connection: AsyncConnection, ids: list[str]) -> dict[str, DeviceSnapshot]:
    """The stored ones of some devices, by id."""
    query = _snapshots().where(devices.c.device_id.in_(among(connection.dialect.name)))
    rows = await connection.execute(query, {"ids": msgspec.json.encode(ids).decode()})
    return {row.device_id: _snapshot(row) for row in rows}


def among(dialect: str) -> TextClause:
    """A subquery that gives the ids in the parameter `ids`, a JSON array: any number of them is one parameter, so that
    it is always the same statement, and there is no limit of parameters to mind."""
    if dialect == "postgresql":
        return text("SELECT json_array_elements_text(CAST(:ids AS json))")
    return text("SELECT value FROM json_each(:ids)")


@final
class DeviceLoader(Loader[DeviceSnapshot]):
    """Loads devices."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, load_devices)
        self.database = database


async def list_devices(connection: AsyncConnection, limit: int, after: str | None = None) -> list[DeviceSnapshot]:
    """Devices in the order of their ids, from the one that follows `after`."""
    query = _snapshots().order_by(devices.c.device_id).limit(limit)
    if after is not None:
        query = query.where(devices.c.device_id > after)
    return [_snapshot(row) for row in await connection.execute(query)]


async def count_by_status(connection: AsyncConnection) -> dict[str, int]:
    """How many devices are in each status."""
    rows = await connection.execute(select(devices.c.status, func.count().label("number")).group_by(devices.c.status))
    return {row.status: row.number for row in rows}


async def forget_presence(connection: AsyncConnection, at: float) -> list[tuple[str, int]]:
    """After a restart: whoever was there is `unknown` now, with a new epoch. Returns device ids and those epochs."""
    present = devices.c.status.in_(_PRESENT)
    await connection.execute(
        insert(presence).from_select(
            ["device_id", "epoch", "status", "cause", "at"],
            select(
                devices.c.device_id,
                devices.c.epoch + 1,
                literal(Status.UNKNOWN.value),
                literal("restart"),
                literal(at, presence.c.at.type),
            ).where(present),
        )
    )
    changed = await connection.execute(
        update(devices)
        .where(present)
        .values(status=Status.UNKNOWN.value, epoch=devices.c.epoch + 1)
        .returning(devices.c.device_id, devices.c.epoch)
    )
    return [(device_id, epoch) for device_id, epoch in changed]
