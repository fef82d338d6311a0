"""The life of a command: which status may follow which, and what a request and a response must look like.

    queued → sent → delivered → in_progress → succeeded | failed
    and from any unfinished one: expired | cancelled

A response may overtake the device's PUBACK, so `sent` may be followed by anything a response can say.
"""

from __future__ import annotations

import enum
import secrets
from typing import Any, Final, final

import msgspec

from bridge.errors import RefusedError

MAX_NAME: Final = 128
MAX_ID: Final = 128


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
    CommandStatus.SENT: frozenset({CommandStatus.QUEUED}),
    CommandStatus.DELIVERED: frozenset({CommandStatus.SENT}),
    CommandStatus.IN_PROGRESS: frozenset({CommandStatus.SENT, CommandStatus.DELIVERED}),
    CommandStatus.SUCCEEDED: _UNFINISHED - {CommandStatus.QUEUED},
    CommandStatus.FAILED: _UNFINISHED - {CommandStatus.QUEUED},
    CommandStatus.EXPIRED: _UNFINISHED,
    CommandStatus.CANCELLED: _UNFINISHED,
}
"""For each status the statuses that it may follow. The database guards every change with the same sets."""


class CommandRequest(msgspec.Struct, frozen=True):
    """What an operator asks: `{"name", "args"?, "id"?, "ttl"?}`; `id` is the idempotency key, `ttl` is in seconds."""

    name: str
    args: Any = None
    id: str | None = None
    ttl: float | None = None


class CommandResponse(msgspec.Struct, frozen=True):
    """What a device answers: `{"id", "status", "result"?, "error"?}`."""

    id: str
    status: CommandStatus
    result: Any = None
    error: str | None = None


@final
class Command(msgspec.Struct):
    """A command as it is stored. Times are Unix seconds; `args` and `result` are JSON values."""

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
    result: Any = None
    error: str | None = None

    def may_become(self, status: CommandStatus) -> bool:
        """Whether `status` may follow the present one."""
        return self.status in PREDECESSORS[status]


_requests: Final = msgspec.json.Decoder(CommandRequest)
_responses: Final = msgspec.json.Decoder(CommandResponse)
_ANSWERS: Final = frozenset({CommandStatus.IN_PROGRESS, CommandStatus.SUCCEEDED, CommandStatus.FAILED})


def new_command(device_id: str, request: CommandRequest, now: float, *, ttl: float, max_ttl: float) -> Command:
    """The stored form of a valid request. `ttl` is the default for requests without one, in seconds.

    Raises RefusedError for an empty or overlong name or id, or a ttl outside (0, max_ttl].
    """
    if not 0 < len(request.name) <= MAX_NAME or "\0" in request.name:
        raise RefusedError("bad_command", f"name must have 1 to {MAX_NAME} characters")
    if request.id is not None and (not 0 < len(request.id) <= MAX_ID or "\0" in request.id):
        raise RefusedError("bad_command", f"id must have 1 to {MAX_ID} characters")
    seconds = ttl if request.ttl is None else request.ttl
    if not 0 < seconds <= max_ttl:
        raise RefusedError("bad_command", f"ttl must be more than 0 and at most {max_ttl:g} seconds, not {seconds:g}")
    command_id = secrets.token_hex(8)
    return Command(
        command_id=command_id,
        device_id=device_id,
        key=request.id or command_id,
        name=request.name,
        args=request.args,
        status=CommandStatus.QUEUED,
        created_at=now,
        expires_at=now + seconds,
        updated_at=now,
    )


def decode_request(payload: bytes) -> CommandRequest:
    """An operator's message. Raises RefusedError that says which field is wrong."""
    try:
        return _requests.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError("bad_command", f"a command is {{name, args?, id?, ttl?}}: {error}") from error


def decode_response(payload: bytes) -> CommandResponse:
    """A device's answer. Raises RefusedError that says which field is wrong."""
    try:
        response = _responses.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError("bad_response", f"a response is {{id, status, result?, error?}}: {error}") from error
    if response.status not in _ANSWERS:
        raise RefusedError("bad_response", f"status must be in_progress, succeeded or failed, not {response.status}")
    return response
