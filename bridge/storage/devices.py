"""What is stored about devices, and the loader that brings it back to their agents."""

from __future__ import annotations

import asyncio
from typing import Any, Final, final

import msgspec
from sqlalchemy import Row, Select, func, insert, literal, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.presence import Status
from bridge.storage.database import Database
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
    )


# One parameter for any number of ids: always the same statement, and no limit of parameters to mind.
_LOAD: Final = {
    "sqlite": _snapshots().where(text("device_id IN (SELECT value FROM json_each(:ids))")),
    "postgresql": _snapshots().where(text("device_id IN (SELECT json_array_elements_text(CAST(:ids AS json)))")),
}


def _snapshot(row: Row[*tuple[Any, ...]]) -> DeviceSnapshot:
    snapshot = DeviceSnapshot(**row._mapping)
    snapshot.state = snapshot.state or ""
    return snapshot


@final
class DeviceLoader:
    """Loads devices, all those asked for together in one query.

    While a query is under way further requests wait for the next one: a thousand cold devices that speak at once cost
    a few queries.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._wanted: dict[str, list[asyncio.Future[DeviceSnapshot | None]]] = {}
        self._task: asyncio.Task[None] | None = None
        self.queries = 0

    async def load(self, device_id: str) -> DeviceSnapshot | None:
        """The stored device, None if there is none. Raises StorageUnavailableError."""
        future: asyncio.Future[DeviceSnapshot | None] = asyncio.get_running_loop().create_future()
        self._wanted.setdefault(device_id, []).append(future)
        if self._task is None:
            # A task starts in the next turn of the loop, so it finds all requests of this one.
            self._task = asyncio.create_task(self._run(), name="device loader")
        return await future

    async def _run(self) -> None:
        try:
            while self._wanted:
                wanted, self._wanted = self._wanted, {}
                await self._answer(wanted)
        finally:
            self._task = None
            _cancel(self._wanted)

    async def _answer(self, wanted: dict[str, list[asyncio.Future[DeviceSnapshot | None]]]) -> None:
        self.queries += 1
        statement = _LOAD[self.database.dialect]
        ids = {"ids": msgspec.json.encode(list(wanted)).decode()}

        async def query(connection: AsyncConnection) -> list[DeviceSnapshot]:
            return [_snapshot(row) for row in await connection.execute(statement, ids)]

        try:
            found = {snapshot.device_id: snapshot for snapshot in await self.database.read(query)}
        except Exception as error:  # noqa: BLE001 - it is raised where the result is waited for
            for futures in wanted.values():
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
        except BaseException:
            _cancel(wanted)
            raise
        else:
            for device_id, futures in wanted.items():
                for future in futures:
                    if not future.done():
                        future.set_result(found.get(device_id))


def _cancel(wanted: dict[str, list[asyncio.Future[DeviceSnapshot | None]]]) -> None:
    for futures in wanted.values():
        for future in futures:
            future.cancel()


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
