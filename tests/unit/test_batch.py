"""What a batch of the writer asks of the database."""

from __future__ import annotations

from bridge.storage import bulk
from bridge.storage.batch import Batch
from bridge.storage.devices import DeviceSnapshot
from bridge.storage.work import Save, Transition


def snapshot(epoch: int) -> DeviceSnapshot:
    return DeviceSnapshot("d", "default", 1.0, 2.0, 0, "online", epoch, "{}", "accepted", 0)


def inserts(*work: Save | Transition) -> dict[bulk.Insert, int]:
    """The statements of a batch with this in it, and how many rows each has."""
    batch = Batch()
    for one in work:
        batch.add(one)
    return {statement: len(flat) // statement.width for statement, flat in batch._inserts()}


def test_a_device_that_comes_costs_two_rows() -> None:
    came = Transition(("d", 7, "online", "connect", 2.0))
    assert inserts(came, Save(snapshot(7))) == {bulk.PRESENCE: 1, bulk.DEVICES: 1}


def test_a_status_that_no_snapshot_has_is_stored_by_itself() -> None:
    came = Transition(("d", 7, "online", "connect", 2.0))
    assert inserts(came) == {bulk.PRESENCE: 1, bulk.DEVICE_STATUS: 1}
    older = Save(snapshot(6))
    assert inserts(older, came) == {bulk.DEVICES: 1, bulk.PRESENCE: 1, bulk.DEVICE_STATUS: 1}
