"""How the time of `make torture` is divided: every fault gets its share, and all of it ends in time."""

from __future__ import annotations

from tests.faults.torture import Torture


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_test_has_its_share_of_what_is_left() -> None:
    clock = Clock()
    torture = Torture(long=True, minutes=1.0, clock=clock)
    counts = []
    for left in (3, 2, 1):
        torture.begin(1 / left)
        row = torture.row("fault")
        for _ in torture.rounds(row, 1, 100):
            clock.now += 5.0
        counts.append(row.rounds)
    assert counts == [4, 4, 4]
    assert clock.now == 100.0 + 60.0


def test_faults_of_one_test_divide_its_share_and_what_one_leaves_the_others_have() -> None:
    clock = Clock()
    torture = Torture(long=True, minutes=1.0, clock=clock)
    torture.begin(0.5)
    first, second = torture.row("first"), torture.row("second")
    for _ in torture.rounds(first, 1, 2, faults_left=2):
        clock.now += 1.0
    for _ in torture.rounds(second, 1, 100, faults_left=1):
        clock.now += 1.0
    assert (first.rounds, second.rounds) == (2, 28)


def test_each_fault_is_tried_once_however_late_it_is_and_the_table_says_what_was_left_out() -> None:
    torture = Torture(long=True, minutes=0.0, clock=Clock())
    torture.begin(1.0)
    row = torture.row("kill")
    assert list(torture.rounds(row, 1, 20)) == [1]
    row.acknowledged, row.recovery = 12_345, 1.26
    assert torture.table().splitlines()[-1] == "| kill | 1 of 20 | 12,345 | 0 | 0 | 1.3 |"


def test_in_ci_every_fault_has_its_count_whatever_time_that_takes() -> None:
    clock = Clock()
    torture = Torture(long=False, minutes=0.0, clock=clock)
    torture.begin(0.1)
    assert list(torture.rounds(torture.row("kill"), 5, 50)) == [1, 2, 3, 4, 5]
    assert torture.pick(3, 30) == 3
