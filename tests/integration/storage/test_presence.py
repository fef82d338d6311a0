"""Presence as it is stored: what is known after a restart, epochs that a crash cannot repeat, and the history."""

from __future__ import annotations

from bridge.storage import devices, presence
from bridge.storage.database import Database
from bridge.storage.devices import DeviceSnapshot
from bridge.storage.presence import UNSEEN, StoredTransition
from bridge.storage.writer import Writer
from tests.integration.storage.witness import Witness, committed


async def store(writer: Writer) -> None:
    for device_id, status in (("a", "online"), ("b", "silent"), ("c", "offline"), ("d", "unknown")):
        writer.save_device(DeviceSnapshot(device_id, status=status, epoch=4))
    await committed(writer)


async def begin(writer: Writer) -> tuple[int, dict[str, int]]:
    floor, forgotten = await writer.submit(lambda connection: presence.begin(connection, 99.5))
    return floor, dict(forgotten)


async def test_after_a_restart_whoever_was_there_is_unknown(
    writer: Writer, database: Database, witness: Witness
) -> None:
    assert await begin(writer) == (0, {})
    await store(writer)
    await writer.submit(presence.end)
    assert await begin(writer) == (0, {"a": 5, "b": 5})
    counts = await database.read(devices.count_by_status)
    assert counts == {"unknown": 3, "offline": 1}
    rows = await witness.rows("SELECT device_id, epoch, status, cause, at FROM presence ORDER BY 1")
    assert rows == [("a", 5, "unknown", "restart", 99.5), ("b", 5, "unknown", "restart", 99.5)]


async def test_after_a_crash_no_epoch_is_given_that_may_have_been_given(writer: Writer) -> None:
    await begin(writer)
    await store(writer)
    # Killed: nobody has called `end`. What was published last is perhaps not stored.
    floor = 4 + UNSEEN
    assert await begin(writer) == (floor, {"a": floor + 1, "b": floor + 1})
    # Those who have not spoken since keep their old epochs, so the floor stays for as long as there are any.
    await writer.submit(presence.end)
    assert await begin(writer) == (floor, {})
    assert await begin(writer) == (floor + 1 + UNSEEN, {})


async def test_history_in_pages_the_latest_first(writer: Writer, database: Database) -> None:
    for epoch in range(1, 6):
        writer.add_presence("d1", epoch, "online" if epoch % 2 else "offline", "connect", float(epoch))
    writer.add_presence("d2", 9, "online", "connect", 1.0)
    await committed(writer)
    page = await database.read(lambda connection: presence.history(connection, "d1", 2))
    assert page == [StoredTransition(5, "online", "connect", 5.0), StoredTransition(4, "offline", "connect", 4.0)]
    rest = await database.read(lambda connection: presence.history(connection, "d1", 10, before=4))
    assert [transition.epoch for transition in rest] == [3, 2, 1]
