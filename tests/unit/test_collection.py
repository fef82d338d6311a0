from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from bridge.collection import LEAST, MOST, OLD_EVERY, YOUNG, Collection


class Knot:
    """Something that only the collector can free."""

    def __init__(self) -> None:
        self.myself = self


@pytest.fixture
def by_hand() -> Iterator[None]:
    """Python collects nothing on its own, and begins with nothing new."""
    thresholds = gc.get_threshold()
    gc.disable()
    gc.collect()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    gc.enable()


def knots(count: int) -> weakref.ref[Knot]:
    """So many new objects, and one of them."""
    made = [Knot() for _ in range(count)]
    return weakref.ref(made[0])


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize(
    ("count", "collected"),
    [(LEAST // 4, False), (2 * LEAST, True), (2 * MOST, False)],
    ids=["too few", "a portion", "too many"],
)
def test_what_is_new_is_collected_in_small_portions(count: int, *, collected: bool) -> None:
    collection = Collection(lambda: 0.0)
    knot = knots(count)
    collection.step()
    assert (knot() is None) == collected


@pytest.mark.usefixtures("by_hand")
def test_what_has_been_looked_at_is_looked_at_again_in_a_quiet_moment_of_the_next_hour() -> None:
    now = 0.0
    collection = Collection(lambda: now)
    alive = [Knot() for _ in range(2 * LEAST)]
    collection.step()
    knot = weakref.ref(alive[0])
    alive.clear()
    now = OLD_EVERY - 1
    collection.step()
    assert knot() is not None
    now = OLD_EVERY + 1
    busy = [Knot() for _ in range(2 * MOST)]
    collection.step()
    assert knot() is not None
    busy.clear()
    gc.collect(0)
    collection.step()
    assert knot() is None


@pytest.mark.usefixtures("by_hand")
def test_without_a_quiet_moment_it_waits_for_one_hour_more() -> None:
    now = 0.0
    collection = Collection(lambda: now)
    knot = knots(2 * MOST)
    now = 2 * OLD_EVERY + 1
    collection.step()
    assert knot() is None


@pytest.mark.usefixtures("by_hand")
def test_python_itself_collects_only_what_is_new_and_every_pause_is_measured() -> None:
    collection = Collection(lambda: 0.0)
    collection.begin()
    try:
        young, middle, old = gc.get_threshold()
        assert young == YOUNG
        assert min(middle, old) > 1_000_000
        before = collection.pauses.count
        gc.collect(0)
        assert collection.pauses.count == before + 1
    finally:
        collection.end()
