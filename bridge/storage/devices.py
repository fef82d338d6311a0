"""What is stored about devices, and the loader that brings it back to their agents."""

from __future__ import annotations

from typing import Any, Final, final

import msgspec
from sqlalchemy import Row, Select, TextClause, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.presence import Status
from bridge.storage.database import Database
from bridge.storage.loader import Loader
from bridge.storage.tables import devices, twins


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
    twin_version: int = 0
    """The version of desired in its twin; 0 if there is nothing in it. Read, not written, with the device."""


def snapshots() -> Select[Any]:
    """A query of stored devices, for `snapshot_of`."""
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


_WIDTH: Final = len(snapshots().selected_columns)


def snapshot_of(row: Row[*tuple[Any, ...]]) -> DeviceSnapshot:
    """The device in a row of `snapshots`, which may have more columns behind."""
    snapshot = DeviceSnapshot(*row[:_WIDTH])
    snapshot.state = snapshot.state or ""
    return snapshot


async def load_devices(connection: AsyncConnection, ids: list[str]) -> dict[str, DeviceSnapshot]:
    """The stored ones of some devices, by id."""
    rows = await connection.execute(_LOAD[connection.dialect.name], {"ids": msgspec.json.encode(ids).decode()})
    found = [DeviceSnapshot(*row) for row in rows]
    for snapshot in found:
        snapshot.state = snapshot.state or ""
    return {snapshot.device_id: snapshot for snapshot in found}


def among(dialect: str) -> TextClause:
    """A subquery that gives the ids in the parameter `ids`, a JSON array: any number of them is one parameter, so that
    it is always the same statement, and there is no limit of parameters to mind."""
    if dialect == "postgresql":
        return text("SELECT json_array_elements_text(CAST(:ids AS json))")
    return text("SELECT value FROM json_each(:ids)")


# Built once, and in the order of a snapshot's fields: while devices wake this runs hundreds of times a second.
_LOAD: Final[dict[str, Select[Any]]] = {
    dialect: snapshots()
    .add_columns(func.coalesce(twins.c.desired_version, 0))
    .select_from(devices.outerjoin(twins, twins.c.device_id == devices.c.device_id))
    .where(devices.c.device_id.in_(among(dialect)))
    for dialect in ("sqlite", "postgresql")
}


@final
class DeviceLoader(Loader[str, DeviceSnapshot]):
    """Loads devices."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, load_devices)


async def count_by_status(connection: AsyncConnection) -> dict[str, int]:
    """How many devices are in each status."""
    rows = await connection.execute(select(devices.c.status, func.count().label("number")).group_by(devices.c.status))
    return {row.status: row.number for row in rows}
