"""The timer wheel: in time, late by at most a tick, and unharmed by a callback that raises."""

from bridge.agents.timers import TICK, TimerWheel


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_timer_fires_once_and_within_a_tick() -> None:
    clock = Clock()
    wheel = TimerWheel(clock)
    fired: list[float] = []
    wheel.call_after(1.0, lambda: fired.append(clock.now))
    while clock.now < 1003.0:
        clock.now += 0.05
        wheel.turn()
    assert len(fired) == 1
    assert 1001.0 <= fired[0] <= 1001.0 + TICK + 0.05


def test_a_loop_that_was_held_up_fires_everything_that_is_due_in_order() -> None:
    clock = Clock()
    wheel = TimerWheel(clock)
    fired: list[int] = []
    for delay in (3, 1, 2, 9):
        wheel.call_after(delay, lambda delay=delay: fired.append(delay))  # type: ignore[misc]  # mypy cannot infer the default's type
    clock.now += 5.0
    wheel.turn()
    assert fired == [1, 2, 3]


def test_a_callback_may_raise_and_may_set_a_timer() -> None:
    clock = Clock()
    wheel = TimerWheel(clock)
    fired: list[str] = []

    def fails() -> None:
        raise ValueError("on purpose")

    wheel.call_after(0.0, fails)
    wheel.call_after(0.0, lambda: wheel.call_after(0.0, lambda: fired.append("second")))
    for _ in range(4):
        clock.now += TICK
        wheel.turn()
    assert fired == ["second"]
