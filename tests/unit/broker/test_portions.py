"""So much per turn of the event loop."""

from __future__ import annotations

import asyncio
from functools import partial

from bridge.broker.portions import Portions


async def test_what_comes_at_once_is_spread_over_turns_in_its_order() -> None:
    portions = Portions(asyncio.get_running_loop(), 10)
    done: list[int] = []
    at_once = [portions.do(partial(done.append, n)) for n in range(35)]
    assert at_once == [True] * 10 + [False] * 25
    sizes = []
    while len(done) < 35:
        sizes.append(len(done))
        await asyncio.sleep(0)
    assert all(after - before <= 10 for before, after in zip(sizes, [*sizes[1:], 35], strict=True))
    assert done == list(range(35))


async def test_the_next_turn_has_a_portion_of_its_own() -> None:
    portions = Portions(asyncio.get_running_loop(), 2)
    for _ in range(5):
        assert portions.do(lambda: None)
        assert portions.do(lambda: None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_who_comes_later_does_not_overtake() -> None:
    portions = Portions(asyncio.get_running_loop(), 2)
    done: list[int] = []
    for n in range(5):
        portions.do(partial(done.append, n))
    await asyncio.sleep(0)
    portions.do(partial(done.append, 5))
    for _ in range(10):
        await asyncio.sleep(0)
    assert done == [0, 1, 2, 3, 4, 5]
