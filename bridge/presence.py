"""Whether a device is there: statuses, causes, and an epoch that only grows. Pure: the clock is passed in."""

from __future__ import annotations

import enum
import math
import zlib
from array import array
from typing import Final, NamedTuple, final

import msgspec

from bridge.errors import RefusedError

JITTER: Final = 0.1
"""The share of the ping interval over which the pings of devices that fell silent together are spread."""
MAX_SLEEP: Final = 2_592_000.0
"""The longest sleep, in seconds (30 days), that a device may announce."""
ROUND_TRIPS: Final = 32
"""Round trips of one device that are remembered."""


class Status(enum.StrEnum):
    """What is known of a device."""

    ONLINE = "online"
    """It is there, or asleep and will be back at a time that it has named."""
    SILENT = "silent"
    """Connected as far as anyone knows, but it has answered no ping for too long."""
    OFFLINE = "offline"
    UNKNOWN = "unknown"
    """The bridge was not there to see: it has just (re)started or is stopping."""


class Transition(NamedTuple):
    """A change of what is known. `epoch` is larger than that of every earlier transition of the device."""

    status: Status
    cause: str
    epoch: int
    at: float


@final
class Presence:
    """One device's presence. Methods that may change the status return the Transition, or None if nothing changed.

    Times are Unix seconds, durations seconds. `wait` is how long the device may be silent before it is pinged (see
    `patience`; infinity: it never is), and after `ping_misses` unanswered pings it is `silent`.

    A device that has announced its sleep is left alone until then, whatever becomes of its connection. `grace` is how
    much later than announced it may wake.
    """

    __slots__ = ("asleep_until", "epoch", "heard_at", "misses", "ping_at", "pinged_at", "status")

    def __init__(self, status: Status = Status.UNKNOWN, epoch: int = 0, heard_at: float = 0.0) -> None:
        self.status = status
        self.epoch = epoch
        self.heard_at = heard_at
        self.pinged_at = 0.0
        """The last ping, 0 before the first."""
        self.ping_at = 0.0
        """When the device's turn to be pinged comes, 0 while it has none."""
        self.misses = 0
        self.asleep_until = 0.0
        """The end of the sleep that the device has announced, 0 while it is awake."""

    def heard(self, at: float, cause: str = "traffic") -> Transition | None:
        """The device has sent something: any traffic counts as life."""
        self.heard_at = at
        self.misses = 0
        if self.status is Status.ONLINE:
            return None
        return self._become(Status.ONLINE, cause, at)

    def connected(self, at: float) -> Transition | None:
        """The device has a new connection: whoever slept is awake."""
        if self.asleep_until:
            self.asleep_until = 0.0
            self.heard_at = at
            return self._become(Status.ONLINE, "connect", at)
        return self.heard(at, "connect")

    def slept(self, at: float, seconds: float) -> Transition:
        """The device has announced to sleep for so long."""
        self.heard_at = at
        self.misses = 0
        self.asleep_until = at + seconds
        return self._become(Status.ONLINE, "sleep", at)

    def gone(self, at: float, cause: str) -> Transition | None:
        """The device's last connection is closed. A stopping bridge does not know what becomes of the device."""
        self.misses = 0
        self.ping_at = 0.0
        status = Status.UNKNOWN if cause == "shutdown" else Status.OFFLINE
        if status is Status.OFFLINE and at < self.asleep_until:
            return None
        self.asleep_until = 0.0
        if self.status is status:
            return None
        return self._become(status, cause, at)

    def overslept(self, at: float, grace: float) -> Transition | None:
        """The device has no connection: if it should have come back from its sleep by now, it is `offline`."""
        if not self.asleep_until or at < self.asleep_until + grace:
            return None
        self.asleep_until = 0.0
        return self._become(Status.OFFLINE, "overslept", at)

    def ping_due(self, now: float, wait: float, grace: float) -> bool:
        """Whether to ping now: silent for `wait`, as long since the last ping, and not asleep. A clock that was set
        back cannot tell, so it asks."""
        silent_for = now - max(self.heard_at, self.pinged_at)
        if self.asleep_until and now < self.asleep_until + grace:
            return False
        return silent_for >= wait or (silent_for < 0 and wait < math.inf)

    def pinged(self, at: float, ping_misses: int) -> Transition | None:
        """A ping is sent. The earlier ones that brought no answer count: at `ping_misses` the device is silent."""
        unanswered = self.pinged_at > self.heard_at
        self.pinged_at = at
        self.ping_at = 0.0
        if unanswered:
            self.misses += 1
        if self.misses < ping_misses or self.status is not Status.ONLINE:
            return None
        return self._become(Status.SILENT, "no_answer", at)

    def next_check(self, wait: float, grace: float) -> float:
        """When `ping_due` can be true at the earliest, or the device's turn comes."""
        if self.ping_at:
            return self.ping_at
        due = max(self.heard_at, self.pinged_at) + wait
        return max(due, self.asleep_until + grace) if self.asleep_until else due

    def patience(self, device_id: str, ping_interval: float) -> float:
        """How long the device may be silent before it is pinged: `ping_interval` and a little more, in which devices
        differ. Before the first ping up to twice as long: after a restart all come back in one moment, and are not
        to be pinged in one moment."""
        share = zlib.crc32(device_id.encode()) / 0xFFFFFFFF
        return ping_interval * (1 + share * (JITTER if self.pinged_at else 1.0))

    def _become(self, status: Status, cause: str, at: float) -> Transition:
        self.status = status
        self.epoch += 1
        return Transition(status, cause, self.epoch, at)


@final
class RoundTrips:
    """How long a device took to answer its last pings, in seconds."""

    __slots__ = ("_next", "_seconds")

    def __init__(self) -> None:
        self._seconds = array("f")
        self._next = 0

    def add(self, seconds: float) -> None:
        """One more answer; the oldest of more than `ROUND_TRIPS` is forgotten."""
        if len(self._seconds) < ROUND_TRIPS:
            self._seconds.append(seconds)
        else:
            self._seconds[self._next] = seconds
        self._next = (self._next + 1) % ROUND_TRIPS

    @property
    def last(self) -> float:
        """The latest one. There is at least one."""
        return self._seconds[self._next - 1]

    def quantile(self, share: float) -> float:
        """The smallest one that `share` of them do not exceed (nearest rank)."""
        ordered = sorted(self._seconds)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class _Sleep(msgspec.Struct):
    seconds: float = msgspec.field(name="for")


_sleeps: Final = msgspec.json.Decoder(_Sleep)


def decode_sleep(payload: bytes) -> float:
    """For how many seconds a device is going to sleep. Raises RefusedError."""
    try:
        seconds = _sleeps.decode(payload).seconds
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError("bad_sleep", f"a sleep is {{for: seconds}}: {error}") from error
    if not 0 < seconds <= MAX_SLEEP:
        raise RefusedError("bad_sleep", f"a sleep lasts more than 0 and at most {MAX_SLEEP:g} seconds")
    return seconds
