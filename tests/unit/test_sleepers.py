"""What of a sleeping agent stays in memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.agents.sleepers import Sleepers
from bridge.storage.devices import DeviceSnapshot

STATES = st.one_of(
    st.just(""),
    st.text(max_size=20),
    st.sampled_from(
        [
            '{"streams":{}}',
            '{"streams":{"]}}',
            '{"streams":{"default":[1.5,{"v":1}]}}',
            '{"streams":{"a":[1.5,{"v":1}],"default":[2,{}]}}',
        ]
    ),
)
SNAPSHOTS = st.builds(
    DeviceSnapshot,
    device_id=st.text("abc", min_size=1, max_size=3),
    profile=st.sampled_from(["default", "fridge"]),
    first_seen=st.floats(0, 1e10),
    last_seen=st.one_of(st.floats(0, 1e10), st.just(1.5)),
    messages=st.integers(0, 2**60),
    status=st.sampled_from(["online", "offline"]),
    epoch=st.integers(0, 2**60),
    state=STATES,
    admission=st.sampled_from(["accepted", "quarantined"]),
    twin_version=st.integers(0, 2**60),
)


@given(st.lists(SNAPSHOTS, unique_by=lambda snapshot: snapshot.device_id))
def test_what_is_kept_comes_back_unchanged_and_once(snapshots: list[DeviceSnapshot]) -> None:
    sleepers = Sleepers()
    for snapshot in snapshots:
        sleepers.keep(snapshot)
    assert len(sleepers) == len(snapshots)
    for snapshot in snapshots:
        assert sleepers.take(snapshot.device_id) == snapshot
        assert sleepers.take(snapshot.device_id) is None
    assert len(sleepers) == 0


def test_a_state_sleeps_through_one_whole_time_and_then_leaves_a_few_at_a_time() -> None:
    sleepers = Sleepers()
    for number in range(10):
        sleepers.keep(DeviceSnapshot(f"old-{number}"))
    sleepers.turn()
    assert sleepers.forget(100) == 0
    sleepers.keep(DeviceSnapshot("young"))
    sleepers.turn()
    assert sleepers.take("old-9") is not None
    assert sleepers.forget(4) == 4
    assert len(sleepers) == 6
    assert sleepers.forget(100) == 5
    assert sleepers.take("old-0") is None
    assert sleepers.take("young") is not None


def test_those_that_have_not_left_in_time_are_not_forgotten() -> None:
    sleepers = Sleepers()
    for name in ("a", "b", "c"):
        sleepers.keep(DeviceSnapshot(name))
        sleepers.turn()
    assert len(sleepers) == 3
    assert sleepers.take("a") is not None
    assert sleepers.forget(100) == 1
    assert sleepers.take("c") is not None
