"""A circuit breaker: a backend that keeps failing is left alone for a while instead of being called by everybody."""

from __future__ import annotations

import enum
from collections.abc import Callable
from types import TracebackType
from typing import Final, final

from bridge.errors import CircuitOpenError


class State(enum.Enum):
    """Whether calls pass."""

    CLOSED = "closed"
    """All calls pass."""
    OPEN = "open"
    """No call passes until the time is over."""
    HALF_OPEN = "half_open"
    """The time is over: one call at a time passes, the probe, until one succeeds."""


@final
class Breaker:
    """Opens after `failures` counted failures in a row, for `open_for` seconds; twice as long after each probe that
    fails, up to `max_open`; closes when a probe succeeds.

    Only exceptions of the classes in `counted` are failures. Any other exception, cancellation included, counts
    neither way: it says nothing about the backend. `clock` returns monotonic seconds.
    """

    __slots__ = (
        "_clock",
        "_counted",
        "_failed",
        "_failures",
        "_generation",
        "_max_open",
        "_open_for",
        "_probing",
        "_reopen_for",
        "_state",
        "_until",
        "name",
        "opened",
        "rejected",
    )

    def __init__(
        self,
        name: str,
        *,
        counted: type[Exception] | tuple[type[Exception], ...],
        clock: Callable[[], float],
        failures: int = 5,
        open_for: float = 1.0,
        max_open: float = 30.0,
    ) -> None:
        self.name = name
        self.opened = 0
        """How often it went from closed to open."""
        self.rejected = 0
        """How many calls it did not let pass."""
        self._clock = clock
        self._counted = counted
        self._failures = failures
        self._open_for = open_for
        self._max_open = max_open
        self._state = State.CLOSED
        self._failed = 0
        self._reopen_for = open_for
        self._until = 0.0
        self._probing = False
        # A call that began before the last change of state says nothing about the present one.
        self._generation = 0

    @property
    def state(self) -> State:
        """The present state; an open breaker whose time is over is half open."""
        if self._state is State.OPEN and self._clock() >= self._until:
            return State.HALF_OPEN
        return self._state

    @property
    def retry_after(self) -> float:
        """In how many seconds a call can pass at the earliest; 0 when one may pass now."""
        return max(0.0, self._until - self._clock()) if self._state is State.OPEN else 0.0

    def call(self) -> Call:
        """The context of one call: `with breaker.call(): await backend()`. Entering raises CircuitOpenError."""
        return Call(self)

    def enter(self) -> int:
        """Admit a call and return its generation, or raise CircuitOpenError. For `Call`."""
        if self._state is State.CLOSED:
            return self._generation
        now = self._clock()
        if self._state is State.OPEN and now >= self._until:
            self._become(State.HALF_OPEN)
        if self._state is State.HALF_OPEN and not self._probing:
            self._probing = True
            return self._generation
        self.rejected += 1
        # While a probe is under way nobody knows how long it takes; the first interval is a fair guess.
        raise CircuitOpenError(self.name, self._until - now if self._state is State.OPEN else self._open_for)

    def leave(self, generation: int, error: BaseException | None) -> None:
        """Take the result of a call that `enter` admitted. For `Call`."""
        if generation != self._generation:
            return
        self._probing = False
        if error is None:
            if self._state is State.HALF_OPEN:
                self._become(State.CLOSED)
                self._reopen_for = self._open_for
            self._failed = 0
        elif isinstance(error, self._counted):
            self._failed += 1
            if self._state is State.HALF_OPEN:
                self._reopen_for = min(self._reopen_for * 2, self._max_open)
                self._open()
            elif self._failed >= self._failures:
                self.opened += 1
                self._open()

    def _open(self) -> None:
        self._become(State.OPEN)
        self._until = self._clock() + self._reopen_for

    def _become(self, state: State) -> None:
        self._state = state
        self._generation += 1
        self._failed = 0
        self._probing = False


@final
class Call:
    """One call through a breaker. Not reusable."""

    __slots__ = ("_breaker", "_generation")

    def __init__(self, breaker: Breaker) -> None:
        self._breaker: Final = breaker
        self._generation = -1

    def __enter__(self) -> None:
        self._generation = self._breaker.enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._breaker.leave(self._generation, error)
