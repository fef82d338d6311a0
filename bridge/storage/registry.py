"""The registry as it is stored: what is known of devices beside what they say themselves, and their credentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Select, Table, delete, func, insert, select, text, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.registry import MAX_CREDENTIALS, Admission, Credential, Entry
from bridge.storage import tables
from bridge.storage.deadletters import storable
from bridge.storage.devices import among
from bridge.storage.tables import command_events, commands, credentials, device_tags, devices

_PUT: Final = (
    "INSERT INTO devices (device_id, profile, first_seen, last_seen, metadata)"
    " VALUES (:device_id, COALESCE(CAST(:profile AS text), :fallback), :at, :at, CAST(:metadata AS json))"
    " ON CONFLICT (device_id) DO UPDATE SET admission = 'accepted',"
    " profile = COALESCE(CAST(:profile AS text), devices.profile),"
    " metadata = COALESCE(CAST(:metadata AS json), devices.metadata)"
)
_PUTS: Final = {"postgresql": text(_PUT), "sqlite": text(_PUT.replace("AS json", "AS text"))}


async def put_devices(
    connection: AsyncConnection, entries: Sequence[Entry], fallback: Mapping[str, str], at: float
) -> list[str]:
    """Store devices, new ones and known ones, and accept them all. `fallback` holds the profiles of those that are new
    and name none. Returns the ids of the new ones. Storing the same again changes nothing."""
    ids = {"ids": msgspec.json.encode([entry.device_id for entry in entries]).decode()}
    subquery = among(connection.dialect.name)
    known = select(devices.c.device_id).where(devices.c.device_id.in_(subquery))
    before = set((await connection.execute(known, ids)).scalars())
    rows = [
        {
            "device_id": entry.device_id,
            "profile": entry.profile,
            "fallback": fallback[entry.device_id],
            "at": at,
            "metadata": None if entry.metadata is None else msgspec.json.encode(entry.metadata).decode(),
        }
        for entry in entries
    ]
    await connection.execute(_PUTS[connection.dialect.name], rows)
    tagged = {entry.device_id: entry.tags for entry in entries if entry.tags is not None}
    if tagged:
        some = {"ids": msgspec.json.encode(list(tagged)).decode()}
        await connection.execute(delete(device_tags).where(device_tags.c.device_id.in_(subquery)), some)
        tags = [{"device_id": i, "tag": tag} for i, given in tagged.items() for tag in dict.fromkeys(given)]
        if tags:
            await connection.execute(insert(device_tags), tags)
    return [entry.device_id for entry in entries if entry.device_id not in before]


async def set_admission(connection: AsyncConnection, device_id: str, admission: Admission) -> bool:
    """Whether there is such a device."""
    query = update(devices).where(devices.c.device_id == device_id).values(admission=admission.value)
    return (await connection.execute(query)).rowcount == 1


async def set_profile(connection: AsyncConnection, device_id: str, profile: str) -> bool:
    """Whether there is such a device."""
    query = update(devices).where(devices.c.device_id == device_id).values(profile=profile)
    return (await connection.execute(query)).rowcount == 1


async def set_metadata(connection: AsyncConnection, device_id: str, metadata: str) -> bool:
    """Whether there is such a device. `metadata` is JSON."""
    query = update(devices).where(devices.c.device_id == device_id).values(metadata=metadata)
    return (await connection.execute(query)).rowcount == 1


async def change_tags(connection: AsyncConnection, device_id: str, add: Sequence[str], remove: Sequence[str]) -> None:
    """Take tags from a device and give it others."""
    of_device = device_tags.c.device_id == device_id
    await connection.execute(delete(device_tags).where(of_device, device_tags.c.tag.in_([*add, *remove])))
    if add:
        rows = [{"device_id": device_id, "tag": tag} for tag in dict.fromkeys(add)]
        await connection.execute(insert(device_tags), rows)


async def describe(connection: AsyncConnection, ids: Sequence[str]) -> dict[str, Entry]:
    """What the registry says of some devices, by id."""
    parameters = {"ids": msgspec.json.encode(list(ids)).decode()}
    return await _entries(
        connection, _columns().where(devices.c.device_id.in_(among(connection.dialect.name))), parameters
    )


async def list_entries(
    connection: AsyncConnection, limit: int, after: str = "", *, quarantined: bool = False
) -> list[Entry]:
    """Devices in the order of their ids, from the one that follows `after`; all, or only those in quarantine."""
    query = _columns().where(devices.c.device_id > after).order_by(devices.c.device_id).limit(limit)
    if quarantined:
        query = query.where(tables.QUARANTINED)
    return list((await _entries(connection, query, {})).values())


def _columns() -> Select[Any]:
    return select(devices.c.device_id, devices.c.profile, devices.c.metadata)


async def _entries(connection: AsyncConnection, query: Select[Any], parameters: dict[str, Any]) -> dict[str, Entry]:
    rows = list(await connection.execute(query, parameters))
    tags = await tags_of(connection, [row.device_id for row in rows])
    return {row.device_id: entry_of(row.device_id, row.profile, row.metadata, tags) for row in rows}


async def tags_of(connection: AsyncConnection, ids: Sequence[str]) -> dict[str, list[str]]:
    """The tags of those of some devices that have any, in order."""
    found = await connection.execute(
        select(device_tags)
        .where(device_tags.c.device_id.in_(among(connection.dialect.name)))
        .order_by(device_tags.c.device_id, device_tags.c.tag),
        {"ids": msgspec.json.encode(ids).decode()},
    )
    tags: dict[str, list[str]] = {}
    for device_id, tag in found:
        tags.setdefault(device_id, []).append(tag)
    return tags


def entry_of(device_id: str, profile: str, metadata: str | None, tags: Mapping[str, Sequence[str]]) -> Entry:
    """What the registry says of a device, from its row and the tags of some devices."""
    return Entry(device_id, profile, tuple(tags.get(device_id, ())), msgspec.json.decode(metadata or "{}"))


async def ids_with_tag(connection: AsyncConnection, tag: str, limit: int, after: str = "") -> list[str]:
    """Devices with a tag in the order of their ids, from the one that follows `after`."""
    query = select(device_tags.c.device_id).where(device_tags.c.tag == tag, device_tags.c.device_id > after)
    return list((await connection.execute(query.order_by(device_tags.c.device_id).limit(limit))).scalars())


async def ids_with_profile(connection: AsyncConnection, profile: str, limit: int, after: str = "") -> list[str]:
    """Devices with a profile in the order of their ids, from the one that follows `after`."""
    query = select(devices.c.device_id).where(devices.c.profile == profile, devices.c.device_id > after)
    return list((await connection.execute(query.order_by(devices.c.device_id).limit(limit))).scalars())


# ---------------------------------------------------------------------- credentials


async def add_credential(connection: AsyncConnection, credential: Credential) -> bool:
    """Whether the device is known and has room for one more."""
    known = await connection.execute(select(devices.c.device_id).where(devices.c.device_id == credential.device_id))
    of_device = select(func.count()).select_from(credentials).where(credentials.c.device_id == credential.device_id)
    if known.one_or_none() is None or (await connection.execute(of_device)).scalar_one() >= MAX_CREDENTIALS:
        return False
    await connection.execute(insert(credentials), credential._asdict())
    return True


async def revoke_credentials(connection: AsyncConnection, device_id: str, credential_id: str | None = None) -> int:
    """Take back one of a device's credentials, or all; how many it had of those."""
    query = delete(credentials).where(credentials.c.device_id == device_id)
    if credential_id is not None:
        query = query.where(credentials.c.credential_id == credential_id)
    return (await connection.execute(query)).rowcount


async def load_credentials(connection: AsyncConnection, ids: list[str]) -> dict[str, list[Credential]]:
    """The credentials of some devices, by device id."""
    query = (
        select(credentials.c.credential_id, credentials.c.device_id, credentials.c.digest, credentials.c.created_at)
        .where(credentials.c.device_id.in_(among(connection.dialect.name)))
        .order_by(credentials.c.created_at)
    )
    found: dict[str, list[Credential]] = {}
    for row in await connection.execute(query, {"ids": msgspec.json.encode(ids).decode()}):
        found.setdefault(row.device_id, []).append(Credential(*row))
    return found


# ---------------------------------------------------------------------- the end


async def delete_some(connection: AsyncConnection, device_id: str, limit: int) -> int:
    """Delete at most `limit` rows of one table that belong to a device, its own row last. Returns how many there were:
    0 when nothing is left of it. So a device with years of readings is deleted in portions that hold up nobody."""
    of_device = select(commands.c.command_id).where(commands.c.device_id == device_id)
    tables_of_devices = [t for t in tables.metadata.sorted_tables if "device_id" in t.c and t is not devices]
    deleted = await _delete(connection, command_events, command_events.c.command_id.in_(of_device), limit)
    for table in (*tables_of_devices, devices):
        if deleted:
            break
        if table is tables.message_ids and connection.dialect.name != "postgresql":
            continue
        deleted = await _delete(connection, table, table.c.device_id == device_id, limit)
    return deleted


async def _delete(connection: AsyncConnection, table: Table, where: Any, limit: int) -> int:
    key = list(table.primary_key)
    some = select(*key).where(where).limit(limit)
    target = key[0] if len(key) == 1 else tuple_(*key)
    return (await connection.execute(delete(table).where(target.in_(some)))).rowcount


async def tagged(connection: AsyncConnection, tag: str, limit: int) -> list[str]:
    """The ids of the first `limit` devices that have a tag, in order."""
    query = select(device_tags.c.device_id).where(device_tags.c.tag == storable(tag))
    return list((await connection.execute(query.order_by(device_tags.c.device_id).limit(limit))).scalars())
