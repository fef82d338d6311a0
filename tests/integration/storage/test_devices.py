"""Devices: loading them together, listing them, and what is known of them after a restart."""

from __future__ import annotations

import asyncio

import pytest

from bridge.errors import StorageUnavailableError
from bridge.storage.database import Database
from bridge.storage.devices import DeviceLoader, DeviceSnapshot
from bridge.storage.writer import Writer
from tests.integration.storage.witness import committed


def snapshot(number: int) -> DeviceSnapshot:
    return DeviceSnapshot(f"d{number:05}", "pump", 1.5, 2.5, number, "online", 3, f'{{"n": {number}}}')


async def store(writer: Writer, count: int) -> None:
    for number in range(count):
        writer.save_device(snapshot(number))
    await committed(writer)


async def test_what_was_saved_is_loaded(writer: Writer, database: Database) -> None:
    await store(writer, 3)
    loader = DeviceLoader(database)
    assert await loader.load("d00001") == snapshot(1)
    assert await loader.load("nobody") is None


async def test_loads_of_one_turn_are_one_query(writer: Writer, database: Database) -> None:
    await store(writer, 5000)
    loader = DeviceLoader(database)
    ids = [f"d{number:05}" for number in range(6000)]
    found = await asyncio.gather(*map(loader.load, [*ids, "d00007"]))
    assert loader.queries == 1
    assert found[:5000] == [snapshot(number) for number in range(5000)]
    assert set(found[5000:6000]) == {None}
    assert found[6000] == snapshot(7)


async def test_loads_during_a_query_share_the_next_one(writer: Writer, database: Database) -> None:
    await store(writer, 100)
    loader = DeviceLoader(database)
    first = asyncio.create_task(loader.load("d00000"))
    while loader.queries < 1:  # noqa: ASYNC110 - it has nobody to tell, and the next turn is looked at
        await asyncio.sleep(0)
    others = [asyncio.create_task(loader.load(f"d{number:05}")) for number in range(1, 100)]
    await asyncio.gather(first, *others)
    assert loader.queries == 2


async def test_a_cancelled_load_harms_no_other(writer: Writer, database: Database) -> None:
    await store(writer, 2)
    loader = DeviceLoader(database)
    tasks = [asyncio.create_task(loader.load("d00000")) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [snapshot(0), snapshot(0)]


async def test_a_failed_load_raises_for_all_and_the_next_one_works(
    writer: Writer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store(writer, 1)
    loader = DeviceLoader(database)

    async def sick(*_arguments: object) -> None:
        raise StorageUnavailableError("not now")

    with monkeypatch.context() as patched:
        patched.setattr(Database, "look_up", sick)
        results = await asyncio.gather(loader.load("d00000"), loader.load("x"), return_exceptions=True)
    assert [type(result) for result in results] == [StorageUnavailableError] * 2
    assert await loader.load("d00000") == snapshot(0)
