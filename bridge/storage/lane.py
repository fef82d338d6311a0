"""What waits for the writer: batches in the order of their hand-over, and how large one may become."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, final

from bridge.storage.batch import Batch

COMMIT_GOAL: Final = 0.006
"""Seconds that one commit is to take: so long does what has just been handed over wait for the commit under way, and a
command with its answer waits for up to four. A few times what an empty one takes: most of it is for the contents."""

LEAST_ROWS: Final = 256
"""A batch may always hold so many rows: in smaller ones the commit costs more than the rows."""
FIRST_ROWS: Final = 512
"""Rows per batch until the first commits are measured."""
LEAST_CHANGES: Final = 8
FIRST_CHANGES: Final = 16
MOST_CHANGES: Final = 256
"""Free changes per commit: each is one or more statements, and may be hundreds."""
SHORT_FOR: Final = 2.0
"""Seconds after a free change in which commits of rows are kept short: where there was one, more may follow."""


@final
class Pace:
    """How much goes into one commit, so that it takes about `COMMIT_GOAL` seconds. Pure: durations are passed in.

    Where a commit takes longer than the goal even with nothing in it (a slow disk, a server far away), its contents
    may take as long as the commit itself: half of what is possible is then still done.
    """

    __slots__ = ("_empty", "_least", "limit", "most")

    def __init__(self, least: int, first: int, most: int) -> None:
        """The limit is never below `least` and never above `most`; it is `first` until something is measured."""
        self.most: Final = most
        """What the limit may never exceed."""
        self._least = min(least, most)
        self._empty = 0.0
        self.limit = max(self._least, min(first, most))
        """A batch is full when it holds so much."""

    def measured(self, size: int, seconds: float) -> None:
        """A commit with `size` rows and changes took `seconds`."""
        if size * 16 <= self._least:
            # Next to nothing in it: a moving average of what every commit costs.
            self._empty += (seconds - self._empty) / 8
        elif size * 2 >= self.limit:
            # One commit that was held up (by a checkpoint, by a neighbour) must not undo what many have shown.
            fitting = size * max(COMMIT_GOAL, 2 * self._empty) / max(seconds, 1e-6)
            fitting = min(max(fitting, self.limit / 2), self.limit * 2)
            self.limit = int(min(max(self.limit + (fitting - self.limit) / 4, self._least), self.most))


@final
class Lane:
    """Batches that are committed one after the other: the open one, which is being filled, and those that are full."""

    __slots__ = ("_closed", "_waiting", "closes", "open", "pace")

    def __init__(self, pace: Pace) -> None:
        self.pace: Final = pace
        self.open = Batch()
        self.closes = 0
        """How often the open batch has been closed: its number."""
        self._closed: deque[Batch] = deque()
        self._waiting = 0

    @property
    def pending(self) -> int:
        """Rows and changes that are not committed yet."""
        return self._waiting + self.open.size

    @property
    def full(self) -> bool:
        """Whether a closed batch waits."""
        return bool(self._closed)

    def close(self) -> None:
        """Begin a new batch."""
        self._waiting += self.open.size
        self._closed.append(self.open)
        self.open = Batch()
        self.closes += 1

    def first(self) -> Batch:
        """The batch to be committed next. It stays here until it is `done`."""
        if not self._closed:
            self.close()
        return self._closed[0]

    def done(self) -> None:
        """The first batch is committed."""
        self._waiting -= self._closed.popleft().size

    def waiting(self) -> list[Batch]:
        """Everything that is here, as closed batches that stay here until they are `done`."""
        if self.open.size:
            self.close()
        return list(self._closed)

    def give_up(self, before: float, error: Exception) -> None:
        """Withdraw the impatient changes of batches opened before that time; forget batches of which nothing is left,
        except for the first one, which may just be being committed."""
        if self.open.size and self.open.opened_at < before:
            self.close()
        for batch in list(self._closed):
            if batch.opened_at >= before:
                break
            batch.withdraw(lambda change: not change.patient, error)
            if not batch.order and batch is not self._closed[0]:
                self._closed.remove(batch)
                self._waiting -= batch.size
                batch.release(None)

    def after_all(self, then: Callable[[Exception | None], None]) -> bool:
        """Have `then` called when all that is here now is committed, with the error if it will not be. False, and no
        call, if there is nothing."""
        if not self.pending:
            return False
        batch = self.open if self.open.size else self._closed[-1]
        batch.then.append(then)
        return True

    def clear(self) -> list[Batch]:
        """Take out everything."""
        left = [*self._closed, self.open]
        self._closed.clear()
        self._waiting = 0
        self.open = Batch()
        return left


@final
class Lanes:
    """The two lanes: rows with what must stay in order with them, and free changes."""

    __slots__ = ("_short_until", "changes", "rows")

    def __init__(self, batch_rows: int) -> None:
        """`batch_rows`: the most that a batch of rows may hold."""
        self.rows: Final = Lane(Pace(LEAST_ROWS, FIRST_ROWS, batch_rows))
        self.changes: Final = Lane(Pace(LEAST_CHANGES, FIRST_CHANGES, MOST_CHANGES))
        self._short_until = 0.0

    @property
    def pending(self) -> int:
        """Rows and changes that are not committed yet."""
        return self.rows.pending + self.changes.pending

    def row_limit(self, now: float) -> int:
        """How much a batch of rows holds when it is full: as much as commits keep their pace with while free changes
        are about at `now` (event-loop time), and else what it may hold at most."""
        pace = self.rows.pace
        return pace.limit if self.changes.pending or now < self._short_until else pace.most

    def change_came(self, now: float) -> None:
        """A free change is handed over: for a while commits of rows are kept short."""
        self._short_until = now + SHORT_FOR

    def clear(self) -> list[Batch]:
        """Take out everything."""
        return [*self.changes.clear(), *self.rows.clear()]
