"""Pages of devices (see keyset)."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import ColumnElement, Text, exists, func, literal
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.errors import RefusedError
from bridge.registry import Entry
from bridge.storage.devices import DeviceSnapshot, snapshot_of, snapshots
from bridge.storage.keyset import Keyset
from bridge.storage.registry import entry_of, tags_of
from bridge.storage.tables import device_tags, devices

MAX_NAME: Final = 200

Sort = Literal["id", "-id", "last_seen", "-last_seen"]


class Wanted(NamedTuple):
    """Which devices. None: all. `prefix` is how their ids begin; `search` is part of the id, or of `name` in the
    metadata, in upper or lower case."""

    status: str | None = None
    profile: str | None = None
    tag: str | None = None
    prefix: str | None = None
    search: str | None = None


class Page(NamedTuple):
    """Devices with what the registry says of them; `next` is where the following page begins, None at the end."""

    devices: list[tuple[DeviceSnapshot, Entry]]
    next: str | None


async def list_page(connection: AsyncConnection, wanted: Wanted, sort: Sort, after: str, limit: int) -> Page:
    """The page that follows `after` (empty: the first one). Raises RefusedError: `bad_cursor`."""
    by_time = sort.endswith("last_seen")
    tagged = wanted.tag is not None and not by_time
    device_id = device_tags.c.device_id if tagged else devices.c.device_id
    order = Keyset((devices.c.last_seen, device_id) if by_time else (device_id,), sort.startswith("-"))
    along, beside = _conditions(wanted, by_time, connection.dialect.name)
    query = snapshots().add_columns(devices.c.metadata)
    if tagged:
        query = query.select_from(device_tags.join(devices, devices.c.device_id == device_tags.c.device_id))
    place = _cursor(after, by_time) if after else None
    rows, end = await order.page(connection, query, limit, place, along=along, beside=beside)
    tags = await tags_of(connection, [row.device_id for row in rows]) if rows else {}
    listed = [(snapshot_of(row), entry_of(row.device_id, row.profile, row.metadata, tags)) for row in rows]
    return Page(
        listed, None if end is None else "~".join(part if isinstance(part, str) else repr(part) for part in end)
    )


def _conditions(
    wanted: Wanted, by_time: bool, dialect: str
) -> tuple[list[ColumnElement[bool]], list[ColumnElement[bool]]]:
    """What the index answers that the page is read along, and the rest."""
    along: list[ColumnElement[bool]] = []
    beside: list[ColumnElement[bool]] = []
    has_index = True
    if wanted.tag is not None:
        if by_time:
            beside.append(
                exists().where(device_tags.c.device_id == devices.c.device_id, device_tags.c.tag == wanted.tag)
            )
        else:
            along.append(device_tags.c.tag == wanted.tag)
            has_index = False
    for column, value, indexed in (
        (devices.c.status, wanted.status, True),
        (devices.c.profile, wanted.profile, not by_time),
    ):
        if value is None:
            continue
        if has_index and indexed:
            along.append(column == value)
            has_index = False
        else:
            # Not the bare column: its index would lead away from the one that the page is read along.
            beside.append(func.coalesce(column, "") == value)
    if wanted.prefix:
        if dialect == "sqlite" and not by_time and not wanted.tag:
            # In the order of bytes, in which `~` comes after whatever an id may hold.
            along += [devices.c.device_id >= wanted.prefix, devices.c.device_id < wanted.prefix + "~"]
        else:
            beside.append(func.substr(devices.c.device_id, 1, len(wanted.prefix)) == wanted.prefix)
    if wanted.search:
        name: ColumnElement[Any] = devices.c.metadata
        name = func.json_extract(name, "$.name") if dialect == "sqlite" else name.op("->>")(literal("name", Text()))
        name = func.coalesce(name, "", type_=Text())
        beside.append(
            devices.c.device_id.icontains(wanted.search, autoescape=True)
            | name.icontains(wanted.search, autoescape=True)
        )
    return along, beside


def _cursor(after: str, by_time: bool) -> list[Any]:
    time, _, device_id = after.rpartition("~")
    try:
        return [float(time), device_id] if by_time else [after]
    except ValueError as error:
        raise RefusedError("bad_cursor", f"{after!r} is not what `next` of a page in this order said") from error
