"""When a scheduled command is due: at a time, or by a cron expression in a time zone. Pure: the clock is passed in.

Times that daylight saving leaves out or brings twice are treated as Debian's cron does: a job at a fixed time that does
not exist runs when the clock has jumped, one at a time that comes twice runs the first time, and one with a wildcard
(`*/15 * * * *`) goes by the time that passes.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Iterator
from datetime import datetime
from typing import Final, NamedTuple, final
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from bridge.errors import RefusedError
from bridge.rollout import Order

GRACE: Final = 300.0
"""Seconds that a run may be late unless its schedule says otherwise: longer, and it is skipped."""
MAX_GRACE: Final = 86_400.0


class ScheduleStatus(enum.StrEnum):
    """Where a schedule stands."""

    ACTIVE = "active"
    DONE = "done"
    """There is no further run."""
    CANCELLED = "cancelled"


class When(msgspec.Struct, frozen=True, omit_defaults=True):
    """Either `at` (Unix seconds), or `cron` (minute, hour, day of month, month, day of week) in the time zone `tz`."""

    at: float | None = None
    cron: str | None = None
    tz: str = "UTC"

    def check(self) -> None:
        """Raises RefusedError that says what is wrong with it."""
        if (self.at is None) == (self.cron is None):
            raise RefusedError("bad_schedule", "give either a time (at) or a cron expression (cron)")
        if self.cron is not None:
            if len(self.cron.split()) != 5:
                raise RefusedError(
                    "bad_schedule",
                    f"cron {self.cron!r}: five fields are needed: minute, hour, day of month, month, day of week",
                )
            next(self._times(0.0), None)

    def after(self, moment: float) -> float | None:
        """The first run after `moment`, None if there is none."""
        if self.at is not None:
            return self.at if self.at > moment else None
        return next(self._times(moment), None)

    def latest(self, since: float, now: float) -> float | None:
        """The last run that is not before `since` and not after `now`."""
        if self.at is not None:
            return self.at if since <= self.at <= now else None
        found = None
        for run in self._times(since - 1.0):
            if run > now:
                break
            if run >= since:
                found = run
        return found

    def _times(self, after: float) -> Iterator[float]:
        if self.cron is None:
            return
        try:
            zone = ZoneInfo(self.tz)
        except (OSError, ValueError) as error:  # not found (a KeyError, too), or no possible name
            raise RefusedError(
                "bad_schedule", f"there is no time zone {self.tz!r}: use one as Europe/Berlin"
            ) from error
        except KeyError as error:
            raise RefusedError(
                "bad_schedule", f"there is no time zone {self.tz!r}: use one as Europe/Berlin"
            ) from error
        try:
            runs = CronSim(self.cron, datetime.fromtimestamp(after, zone))
        except CronSimError as error:
            raise RefusedError("bad_schedule", f"cron {self.cron!r}: {error}") from error
        for run in runs:
            moment = run.timestamp()
            # While an hour comes the second time, a fixed time in it lies in the past already.
            if moment > after:
                yield moment


class Plan(NamedTuple):
    """What is to be done with a schedule that is due: start `run` (the time it was due at; None: nothing), note that
    the runs from `missed` on did not take place (None: none), and wait for `following` (None: it is done)."""

    run: float | None
    missed: float | None
    following: float | None


@final
class Schedule(msgspec.Struct):
    """A schedule as it is stored. Times are Unix seconds; `grace` is in seconds; `next_at` is None when it is over."""

    schedule_id: str
    key: str
    order: Order
    when: When
    grace: float
    status: ScheduleStatus
    next_at: float | None
    created_at: float
    updated_at: float

    def plan(self, now: float) -> Plan:
        """What to do at `now`. Of the runs that were missed, while the bridge was down, the last one takes place if
        it is late by no more than `grace`; the others are skipped."""
        due = self.next_at
        if due is None or due > now:
            return Plan(None, None, due)
        run = self.when.latest(max(due, now - self.grace), now)
        missed = due if run is None or due < run else None
        return Plan(run, missed, self.when.after(now))


def new_schedule(order: Order, when: When, grace: float, key: str | None, now: float) -> Schedule:
    """A schedule from now on. Raises RefusedError for a time that has passed, or a cron that never comes true."""
    when.check()
    if not 0 <= grace <= MAX_GRACE:
        raise RefusedError("bad_schedule", f"grace is 0 to {MAX_GRACE:g} seconds, not {grace:g}")
    following = when.after(now)
    if following is None:
        raise RefusedError(
            "bad_schedule",
            "that time has passed" if when.cron is None else f"cron {when.cron!r} never comes true",
        )
    schedule_id = f"s-{secrets.token_hex(8)}"
    return Schedule(
        schedule_id=schedule_id,
        key=key or schedule_id,
        order=order,
        when=when,
        grace=grace,
        status=ScheduleStatus.ACTIVE,
        next_at=following,
        created_at=now,
        updated_at=now,
    )
