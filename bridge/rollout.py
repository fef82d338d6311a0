"""A rollout: one command for many devices, so many at a time, stopped when too many of them fail. Pure."""

from __future__ import annotations

import enum
import math
import re
import secrets
from collections.abc import Iterable
from typing import Final, final

import msgspec

from bridge.commands import CommandRequest, CommandStatus, new_command
from bridge.errors import RefusedError
from bridge.presence import Status
from bridge.topics import is_device_id

MAX_NAMED: Final = 10_000
"""Devices that a target may name one by one; a tag or a profile may hold any number."""
MAX_AT_ONCE: Final = 1_000
AT_ONCE: Final = 100
"""Unfinished commands of a rollout that does not say how many."""

_STOP: Final = re.compile(r"[1-9]\d{0,8}|(100|[1-9]?\d(\.\d{1,3})?)%")


class RolloutStatus(enum.StrEnum):
    """Where a rollout stands."""

    RUNNING = "running"
    FINISHED = "finished"
    """Every device's command has ended, in whatever way."""
    STOPPED = "stopped"
    """Too many devices failed: no further one gets the command."""
    CANCELLED = "cancelled"


class Target(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who gets a command: the devices that are named, or of those the bridge knows all that fit every filter given.

    `everyone` says that no filter is meant. Devices fit or do not when their turn comes, in the order of their ids.
    """

    devices: tuple[str, ...] = ()
    tag: str | None = None
    profile: str | None = None
    status: Status | None = None
    everyone: bool = False

    def check(self) -> None:
        """Raises RefusedError unless it names devices, or filters, or everyone, and not two of these."""
        filters = any(value is not None for value in (self.tag, self.profile, self.status))
        if bool(self.devices) + filters + self.everyone != 1:
            raise RefusedError(
                "bad_target",
                "say who gets it: devices, or a tag, profile or status (all that are given count), or everyone",
            )
        if len(self.devices) > MAX_NAMED:
            raise RefusedError("bad_target", f"at most {MAX_NAMED} devices can be named; give them a tag")
        for device_id in self.devices:
            if not is_device_id(device_id):
                raise RefusedError("bad_target", f"device id {device_id[:80]!r}: use 1 to 64 of A-Z a-z 0-9 . _ : -")

    def named_after(self, cursor: str) -> list[str]:
        """The devices that are named and follow `cursor`, in order, each once."""
        return sorted({device_id for device_id in self.devices if device_id > cursor})


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a rollout does: `request` for each device of `target`, at most `at_once` unfinished at a time, and no
    further one after so many failures: a number, or a percentage of all (`5`, `10%`)."""

    request: CommandRequest
    target: Target
    at_once: int = AT_ONCE
    stop_after: str | None = None

    def check(self, max_ttl: float) -> None:
        """Raises RefusedError that says what is wrong with it. `max_ttl`: the longest ttl of a command, in seconds."""
        self.target.check()
        new_command("", self.request, 0.0, ttl=max_ttl, max_ttl=max_ttl)
        if not 0 < self.at_once <= MAX_AT_ONCE:
            raise RefusedError("bad_rollout", f"at most {MAX_AT_ONCE} commands at once, at least 1, not {self.at_once}")
        if self.stop_after is not None and _STOP.fullmatch(self.stop_after) is None:
            raise RefusedError(
                "bad_rollout", f"stop_after is a number or a percentage (5, 10%), not {self.stop_after!r}"
            )

    def limit(self, total: int) -> int | None:
        """The number of failures that stops it, when it is for `total` devices; None for any number."""
        if self.stop_after is None:
            return None
        if self.stop_after.endswith("%"):
            return max(1, math.ceil(total * float(self.stop_after[:-1]) / 100))
        return int(self.stop_after)


@final
class Rollout(msgspec.Struct):
    """A rollout as it is stored. Times are Unix seconds.

    `total` devices fitted when it was made. All up to and including `cursor` have their command; `refused` of them
    could not be given one. `key` is the idempotency key.
    """

    rollout_id: str
    key: str
    order: Order
    status: RolloutStatus
    cause: str
    total: int
    created_at: float
    updated_at: float
    cursor: str = ""
    refused: int = 0

    def request_for(self, device_id: str) -> CommandRequest:
        """What one device is asked: always under the same key, so that whoever asks twice asks once."""
        return msgspec.structs.replace(self.order.request, id=f"{self.rollout_id}:{device_id}")


def new_rollout(order: Order, key: str | None, total: int, cause: str, now: float) -> Rollout:
    """A rollout that starts now, for `total` devices."""
    rollout_id = f"r-{secrets.token_hex(8)}"
    return Rollout(
        rollout_id=rollout_id,
        key=key or rollout_id,
        order=order,
        status=RolloutStatus.RUNNING,
        cause=cause,
        total=total,
        created_at=now,
        updated_at=now,
    )


@final
class Progress:
    """What a running rollout may do next: how many commands are unfinished, how many failed. Each is counted once,
    whether its end or the answer to its sending is heard of first."""

    __slots__ = ("_at_once", "_limit", "failures", "open")

    def __init__(self, at_once: int, limit: int | None, open: Iterable[str] = (), failures: int = 0) -> None:
        """`open`: the ids of the unfinished commands; `limit`: the failures that stop it."""
        self._at_once = at_once
        self._limit = limit
        self.open = set(open)
        self.failures = failures

    def sent(self, command_id: str, status: CommandStatus) -> None:
        """A new command is stored; `status` is what it is by now."""
        if status.final:
            self._count(status)
        else:
            self.open.add(command_id)

    def ended(self, command_id: str, status: CommandStatus) -> None:
        """A command has reached a final status."""
        if command_id in self.open:
            self.open.remove(command_id)
            self._count(status)

    def refused(self) -> None:
        """A device could not be given the command."""
        self.failures += 1

    @property
    def gone_wrong(self) -> bool:
        """Whether as many failed as stop it."""
        return self._limit is not None and self.failures >= self._limit

    @property
    def room(self) -> int:
        """How many devices may be given the command now."""
        return 0 if self.gone_wrong else max(0, self._at_once - len(self.open))

    def _count(self, status: CommandStatus) -> None:
        self.failures += status in FAILURES


FAILURES: Final = frozenset({CommandStatus.FAILED, CommandStatus.EXPIRED})
"""Ends that count as a failure; a command that somebody has cancelled does not."""
