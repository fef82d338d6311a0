"""Whether a device is there: statuses, causes, and an epoch that only grows. Pure: the clock is passed in."""

from __future__ import annotations

import enum
from typing import NamedTuple, final


class Status(enum.StrEnum):
    """What is known of a device."""

    ONLINE = "online"
    SILENT = "silent"
    """Connected as far as anyone knows, but it has answered no ping for too long."""
    OFFLINE = "offline"
    UNKNOWN = "unknown"
    """The bridge was not there to see: it has just (re)started or is stopping."""


class Transition(NamedTuple):
    """A change of status. `epoch` is larger than that of every earlier transition of the device."""

    status: Status
    cause: str
    epoch: int
    at: float


@final
class Presence:
    """One device's presence. Methods that may change the status return the Transition, or None if nothing changed.

    `ping_interval` is how long a device may be silent, in seconds, before it is pinged; after `ping_misses`
    unanswered pings it is `silent`. Times are Unix seconds.
    """

    __slots__ = ("epoch", "heard_at", "misses", "pinged_at", "status")

    def __init__(self, status: Status = Status.UNKNOWN, epoch: int = 0, heard_at: float = 0.0) -> None:
        self.status = status
        self.epoch = epoch
        self.heard_at = heard_at
        self.pinged_at = 0.0
        self.misses = 0

    def heard(self, at: float, cause: str = "traffic") -> Transition | None:
        """The device has sent something: any traffic counts as life."""
        self.heard_at = at
        self.misses = 0
        if self.status is Status.ONLINE:
            return None
        return self._become(Status.ONLINE, cause, at)

    def gone(self, at: float, cause: str) -> Transition | None:
        """The device's last connection is closed. A stopping bridge does not know what becomes of the device."""
        self.misses = 0
        status = Status.UNKNOWN if cause == "shutdown" else Status.OFFLINE
        if self.status is status:
            return None
        return self._become(status, cause, at)

    def ping_due(self, now: float, ping_interval: float) -> bool:
        """Whether to ping now: silent for `ping_interval`, and as long since the last ping. A clock that was set back
        cannot tell, so it asks."""
        silent_for = now - max(self.heard_at, self.pinged_at)
        return silent_for >= ping_interval or silent_for < 0

    def pinged(self, at: float, ping_misses: int) -> Transition | None:
        """A ping is sent. The earlier ones that brought no answer count: at `ping_misses` the device is silent."""
        unanswered = self.pinged_at > self.heard_at
        self.pinged_at = at
        if unanswered:
            self.misses += 1
        if self.misses < ping_misses or self.status is not Status.ONLINE:
            return None
        return self._become(Status.SILENT, "no_answer", at)

    def next_check(self, ping_interval: float) -> float:
        """When `ping_due` can be true at the earliest."""
        return max(self.heard_at, self.pinged_at) + ping_interval

    def _become(self, status: Status, cause: str, at: float) -> Transition:
        self.status = status
        self.epoch += 1
        return Transition(status, cause, self.epoch, at)
