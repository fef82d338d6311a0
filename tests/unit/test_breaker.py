"""The circuit breaker, with a clock that the tests turn."""

from __future__ import annotations

import asyncio

import pytest

from bridge.breaker import Breaker, State
from bridge.errors import CircuitOpenError


class SickError(Exception):
    """The failure that counts."""


class Clock:
    """Monotonic seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("backend", counted=SickError, clock=clock, failures=3, open_for=1.0, max_open=5.0)


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(SickError), breaker.call():
            raise SickError


def state(breaker: Breaker) -> State:
    # Through a call, or mypy believes that a state which was asserted once never changes.
    return breaker.state


def succeed(breaker: Breaker) -> None:
    with breaker.call():
        pass


def test_opens_after_failures_in_a_row(breaker: Breaker) -> None:
    fail(breaker, 2)
    succeed(breaker)
    fail(breaker, 2)
    assert state(breaker) is State.CLOSED
    fail(breaker)
    assert state(breaker) is State.OPEN
    assert breaker.opened == 1


def test_open_lets_nothing_pass_and_says_for_how_long(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 0.25
    with pytest.raises(CircuitOpenError, match="backend") as caught, breaker.call():
        raise AssertionError("a call passed")
    assert caught.value.retry_after == pytest.approx(0.75)
    assert breaker.retry_after == pytest.approx(0.75)
    assert breaker.rejected == 1


def test_other_exceptions_count_neither_way(breaker: Breaker) -> None:
    fail(breaker, 2)
    with pytest.raises(ZeroDivisionError), breaker.call():
        raise ZeroDivisionError
    assert state(breaker) is State.CLOSED
    fail(breaker)
    assert state(breaker) is State.OPEN


def test_successful_probe_closes(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 1.0
    assert state(breaker) is State.HALF_OPEN
    assert breaker.retry_after == 0.0
    succeed(breaker)
    assert state(breaker) is State.CLOSED
    fail(breaker, 2)
    assert state(breaker) is State.CLOSED


def test_each_failed_probe_doubles_the_time_up_to_the_limit(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    waits = []
    for _ in range(4):
        clock.now += breaker.retry_after
        fail(breaker)
        waits.append(breaker.retry_after)
    assert waits == pytest.approx([2.0, 4.0, 5.0, 5.0])
    clock.now += 5.0
    succeed(breaker)
    fail(breaker, 3)
    assert breaker.retry_after == pytest.approx(1.0)


def test_one_of_200_calls_passes_when_half_open(breaker: Breaker, clock: Clock) -> None:
    async def scenario() -> tuple[int, int]:
        fail(breaker, 3)
        clock.now += 1.0
        release = asyncio.Event()
        passed = 0

        async def call() -> None:
            nonlocal passed
            with breaker.call():
                passed += 1
                await release.wait()

        calls = [asyncio.create_task(call()) for _ in range(200)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        release.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        return passed, sum(isinstance(result, CircuitOpenError) for result in results)

    assert asyncio.run(scenario()) == (1, 199)
    assert state(breaker) is State.CLOSED


def test_cancelled_probe_frees_its_slot_and_counts_neither_way(breaker: Breaker, clock: Clock) -> None:
    async def scenario() -> None:
        fail(breaker, 3)
        clock.now += 1.0

        async def hang() -> None:
            with breaker.call():
                await asyncio.Event().wait()

        probe = asyncio.create_task(hang())
        await asyncio.sleep(0)
        with pytest.raises(CircuitOpenError), breaker.call():
            raise AssertionError("a second probe passed")
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe

    asyncio.run(scenario())
    assert state(breaker) is State.HALF_OPEN
    succeed(breaker)
    assert state(breaker) is State.CLOSED


def test_probe_with_an_uncounted_exception_frees_its_slot(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 1.0
    with pytest.raises(ZeroDivisionError), breaker.call():
        raise ZeroDivisionError
    assert state(breaker) is State.HALF_OPEN
    fail(breaker)
    assert breaker.retry_after == pytest.approx(2.0)


def test_results_of_calls_from_before_the_opening_are_stale(breaker: Breaker, clock: Clock) -> None:
    late_success, late_failure = breaker.call(), breaker.call()
    late_success.__enter__()
    late_failure.__enter__()
    fail(breaker, 3)
    late_success.__exit__(None, None, None)
    assert state(breaker) is State.OPEN
    clock.now += 1.0
    probe = breaker.call()
    probe.__enter__()
    error = SickError()
    late_failure.__exit__(SickError, error, None)
    with pytest.raises(CircuitOpenError), breaker.call():
        raise AssertionError("the late failure freed the probe's slot")
    probe.__exit__(None, None, None)
    assert state(breaker) is State.CLOSED
