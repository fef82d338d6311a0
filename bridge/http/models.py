"""What the API says and takes, as OpenAPI shows it. Times are RFC 3339 in UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from bridge.commands import Command, CommandRequest, CommandStatus


def moment(seconds: float) -> datetime:
    """Unix seconds as a UTC time."""
    return datetime.fromtimestamp(seconds, UTC)


def decoded(payload: str) -> Any:
    """A payload's value; its text where that is JSON for whoever let it in, and for no one else: half of a surrogate
    pair, a number of a thousand digits."""
    try:
        return msgspec.json.decode(payload)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return payload


class _State(msgspec.Struct):
    streams: dict[str, tuple[float, msgspec.Raw]] = {}


_states: Final = msgspec.json.Decoder(_State)


def streams(state: str) -> dict[str, Any]:
    """A stored device's last reading of each stream: time and values."""
    found = _states.decode(state).streams if state else {}
    return {name: {"ts": moment(ts), "values": decoded(bytes(raw).decode())} for name, (ts, raw) in found.items()}


class Model(BaseModel):
    """Refuses unknown fields."""

    model_config = ConfigDict(extra="forbid")


class CommandBody(Model):
    """A command to a device."""

    name: str = Field(min_length=1, max_length=128, examples=["reboot"])
    args: Any = Field(default=None, examples=[{"delay": 5}], description="Any JSON value; the device gets it as it is.")
    id: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Idempotency key: the same key gives the same command.",
    )
    ttl: float | None = Field(default=None, gt=0, description="Seconds until the command expires.")
    attempts: int | None = Field(
        default=None, ge=1, le=100, description="Requests that the device may be sent while it acknowledges none."
    )
    retry_after: float | None = Field(
        default=None, gt=0, le=86_400, description="Seconds without an acknowledgement until the next attempt."
    )

    def request(self) -> CommandRequest:
        """What the agents are asked."""
        return CommandRequest(self.name, self.args, self.id, self.ttl, self.attempts, self.retry_after)


class CommandView(Model):
    """A command as it stands."""

    command_id: str
    device_id: str
    key: str
    name: str
    args: Any
    status: CommandStatus
    created_at: datetime
    expires_at: datetime
    updated_at: datetime
    attempts: int = Field(description="Requests sent so far, of at most `max_attempts`.")
    max_attempts: int
    retry_after: float
    rollout_id: str | None = None
    result: Any = None
    error: str | None = None

    @classmethod
    def of(cls, command: Command) -> CommandView:
        """The view of a stored command."""
        return cls(
            command_id=command.command_id,
            device_id=command.device_id,
            key=command.key,
            name=command.name,
            args=command.args,
            status=command.status,
            created_at=moment(command.created_at),
            expires_at=moment(command.expires_at),
            updated_at=moment(command.updated_at),
            attempts=command.attempts,
            max_attempts=command.max_attempts,
            retry_after=command.retry_after,
            rollout_id=command.rollout_id,
            result=command.result,
            error=command.error,
        )


class CommandPage(Model):
    """Commands, the newest first. `next` is the `before` of the following page."""

    commands: list[CommandView]
    next: str | None


class CommandEventView(Model):
    """One step in a command's life."""

    seq: int
    status: CommandStatus
    at: datetime
    cause: str
    detail: Any = None


class CommandWithEvents(Model):
    """A command and its steps after the one the caller knew."""

    command: CommandView
    events: list[CommandEventView]


class RoundTripView(Model):
    """How long the device took to answer its last pings, in seconds."""

    last: float
    p50: float
    p99: float


class DeviceView(Model):
    """A device as its agent knows it, or as it was last stored."""

    device_id: str
    profile: str
    tags: list[str] = Field(default_factory=list)
    metadata: dict[str, Any] = Field(default_factory=dict, description="What the registry says of it.")
    status: str
    first_seen: datetime
    last_seen: datetime
    messages: int = Field(description="Telemetry and event messages received from it.")
    streams: dict[str, Any] = Field(
        default_factory=dict, description="The last reading of each stream: time and values."
    )
    round_trip: RoundTripView | None = Field(None, description="None before it has answered a ping.")


class DevicePage(Model):
    """Devices. `next` is the `after` of the following page, null at the end."""

    devices: list[DeviceView]
    next: str | None
    known: int | None = Field(None, description="How many there are of that status, or of all; null if not counted.")


class SettingView(Model):
    """One setting."""

    key: str = Field(examples=["mqtt.port"])
    value: Any
    origin: str = Field(examples=["default", "environment BRIDGE_MQTT__PORT"])


class SettingList(Model):
    """All settings."""

    settings: list[SettingView]


class ReadingView(Model):
    """One stored reading."""

    stream: str
    ts: datetime
    received_at: datetime
    message_id: str | None
    values: Any


class ReadingPage(Model):
    """Readings, the latest first. `next` is the `after` of the following page."""

    readings: list[ReadingView]
    next: str | None = None


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
