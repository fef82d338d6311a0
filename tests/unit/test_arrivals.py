"""Comings and goings: one alone at once, many together, always in their order."""

from __future__ import annotations

import asyncio
import itertools

from bridge.agents.arrivals import TOLD_TOGETHER, Arrivals


async def test_one_alone_is_passed_on_at_once_and_who_follows_is_gathered() -> None:
    told: list[int] = []
    all_told = asyncio.Event()

    def tell(number: int) -> None:
        told.append(number)
        if len(told) == 3:
            all_told.set()

    arrivals = Arrivals(asyncio.get_running_loop(), tell)
    arrivals.add(0)
    assert told == [0]
    arrivals.add(1)
    arrivals.add(2)
    assert told == [0]
    async with asyncio.timeout(10):
        await all_told.wait()
    assert told == [0, 1, 2]


async def test_many_are_spread_over_turns_in_their_order() -> None:
    told: list[int] = []
    arrivals = Arrivals(asyncio.get_running_loop(), told.append)
    many = 3 * TOLD_TOGETHER
    for number in range(many):
        arrivals.add(number)
    sizes = [len(told)]
    while len(told) < many:
        await asyncio.sleep(0)
        sizes.append(len(told))
    assert max(after - before for before, after in itertools.pairwise(sizes)) <= TOLD_TOGETHER
    assert told == list(range(many))


async def test_nothing_that_waits_is_left_out_of_a_flush() -> None:
    told: list[int] = []
    arrivals = Arrivals(asyncio.get_running_loop(), told.append)
    for number in range(5):
        arrivals.add(number)
    arrivals.flush()
    assert told == [0, 1, 2, 3, 4]
