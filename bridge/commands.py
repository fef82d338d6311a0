"""The life of a command: which status may follow which, and what a request and a response must look like.

    queued → sent → delivered → in_progress → succeeded | failed
    and from any unfinished one: expired | cancelled

A response may overtake the device's PUBACK, so `sent` may be followed by anything a response can say. It may also be
followed by `sent`: another attempt, as long as the device has acknowledged none. Once it has, the request is not sent
again: it is the device's turn, and the deadline ends a command that stays unanswered.
"""

from __future__ import annotations

import enum
import secrets
from typing import Any, Final, final

import msgspec

from bridge.errors import RefusedError

MAX_NAME: Final = 128
MAX_ID: Final = 128
MAX_ATTEMPTS: Final = 100
MAX_RETRY_AFTER: Final = 86_400.0
"""Seconds."""


class CommandStatus(enum.StrEnum):
    """Where a command stands."""

    QUEUED = "queued"
    """Stored; the device is not there yet."""
    SENT = "sent"
    """Handed to the device's connection."""
    DELIVERED = "delivered"
    """The device has acknowledged the request (its PUBACK)."""
    IN_PROGRESS = "in_progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing can follow."""
        return self in _FINAL


_FINAL: Final = frozenset(
    {CommandStatus.SUCCEEDED, CommandStatus.FAILED, CommandStatus.EXPIRED, CommandStatus.CANCELLED}
)
_UNFINISHED: Final = frozenset(CommandStatus) - _FINAL

PREDECESSORS: Final[dict[CommandStatus, frozenset[CommandStatus]]] = {
    CommandStatus.QUEUED: frozenset(),
    CommandStatus.SENT: frozenset({CommandStatus.QUEUED, CommandStatus.SENT}),
    CommandStatus.DELIVERED: frozenset({CommandStatus.SENT}),
    CommandStatus.IN_PROGRESS: frozenset({CommandStatus.SENT, CommandStatus.DELIVERED}),
    CommandStatus.SUCCEEDED: _UNFINISHED - {CommandStatus.QUEUED},
    CommandStatus.FAILED: _UNFINISHED - {CommandStatus.QUEUED},
    CommandStatus.EXPIRED: _UNFINISHED,
    CommandStatus.CANCELLED: _UNFINISHED,
}
"""For each status the statuses that it may follow. The database guards every change with the same sets."""


class CommandRequest(msgspec.Struct, frozen=True):
    """What an operator asks: `{"name", "args"?, "id"?, "ttl"?, "attempts"?, "retry_after"?}`.

    `id` is the idempotency key, `ttl` the seconds until the deadline. At most `attempts` requests are sent, another
    one `retry_after` seconds after one that the device did not acknowledge.
    """

    name: str
    args: Any = None
    id: str | None = None
    ttl: float | None = None
    attempts: int | None = None
    retry_after: float | None = None


class CommandResponse(msgspec.Struct, frozen=True):
    """What a device answers: `{"id", "status", "result"?, "error"?}`."""

    id: str
    status: CommandStatus
    result: Any = None
    error: str | None = None


@final
class Command(msgspec.Struct):
    """A command as it is stored. Times are Unix seconds; `args` and `result` are JSON values.

    `attempts` requests have been sent of at most `max_attempts`, `retry_after` seconds apart. `rollout_id` names the
    rollout that it is part of.
    """

    command_id: str
    device_id: str
    key: str
    name: str
    args: Any
    status: CommandStatus
    created_at: float
    expires_at: float
    updated_at: float
    attempts: int = 0
    max_attempts: int = 1
    retry_after: float = 10.0
    rollout_id: str | None = None
    result: Any = None
    error: str | None = None

    def may_become(self, status: CommandStatus) -> bool:
        """Whether `status` may follow the present one."""
        if status is CommandStatus.SENT and self.attempts >= self.max_attempts:
            return False
        return self.status in PREDECESSORS[status]

    def retry_due(self) -> float:
        """When the next attempt is due, in Unix seconds; infinity if there will be none."""
        if self.status is not CommandStatus.SENT or not self.may_become(CommandStatus.SENT):
            return float("inf")
        return self.updated_at + self.retry_after

    def is_asked_by(self, other: Command) -> bool:
        """Whether `other`, which came with the same idempotency key, asks for the same thing."""
        return self.name == other.name and self.args == other.args


_requests: Final = msgspec.json.Decoder(CommandRequest)
_responses: Final = msgspec.json.Decoder(CommandResponse)
_ANSWERS: Final = frozenset({CommandStatus.IN_PROGRESS, CommandStatus.SUCCEEDED, CommandStatus.FAILED})


def new_command(
    device_id: str,
    request: CommandRequest,
    now: float,
    *,
    ttl: float,
    max_ttl: float,
    attempts: int = 3,
    retry_after: float = 10.0,
    rollout_id: str | None = None,
) -> Command:
    """The stored form of a valid request. `ttl`, `attempts` and `retry_after` are for requests that do not say it
    themselves; times in seconds.

    Raises RefusedError for an empty or overlong name or id, a ttl outside (0, max_ttl], or attempts that make no sense.
    """
    if not 0 < len(request.name) <= MAX_NAME or "\0" in request.name:
        raise RefusedError("bad_command", f"name must have 1 to {MAX_NAME} characters")
    if request.id is not None and (not 0 < len(request.id) <= MAX_ID or "\0" in request.id):
        raise RefusedError("bad_command", f"id must have 1 to {MAX_ID} characters")
    ttl = ttl if request.ttl is None else request.ttl
    if not 0 < ttl <= max_ttl:
        raise RefusedError("bad_command", f"ttl must be more than 0 and at most {max_ttl:g} seconds, not {ttl:g}")
    attempts = attempts if request.attempts is None else request.attempts
    if not 0 < attempts <= MAX_ATTEMPTS:
        raise RefusedError("bad_command", f"attempts must be 1 to {MAX_ATTEMPTS}, not {attempts}")
    retry_after = retry_after if request.retry_after is None else request.retry_after
    if not 0 < retry_after <= MAX_RETRY_AFTER:
        raise RefusedError(
            "bad_command",
            f"retry_after must be more than 0 and at most {MAX_RETRY_AFTER:g} seconds, not {retry_after:g}",
        )
    command_id = secrets.token_hex(8)
    return Command(
        command_id=command_id,
        device_id=device_id,
        key=request.id or command_id,
        name=request.name,
        args=request.args,
        status=CommandStatus.QUEUED,
        created_at=now,
        expires_at=now + ttl,
        updated_at=now,
        max_attempts=attempts,
        retry_after=retry_after,
        rollout_id=rollout_id,
    )


def decode_request(payload: bytes) -> CommandRequest:
    """An operator's message. Raises RefusedError that says which field is wrong."""
    try:
        return _requests.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError(
            "bad_command", f"a command is {{name, args?, id?, ttl?, attempts?, retry_after?}}: {error}"
        ) from error


def decode_response(payload: bytes) -> CommandResponse:
    """A device's answer. Raises RefusedError that says which field is wrong."""
    try:
        response = _responses.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError("bad_response", f"a response is {{id, status, result?, error?}}: {error}") from error
    if response.status not in _ANSWERS:
        raise RefusedError("bad_response", f"status must be in_progress, succeeded or failed, not {response.status}")
    return response
