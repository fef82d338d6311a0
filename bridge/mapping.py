"""Devices with topics and payloads of their own: what they mean to the bridge. Pure.

A pattern such as `tele/%id%/SENSOR` names the device by one level. A level that is no device id is escaped: each byte
of its UTF-8 that an id may not hold, and each colon, becomes `:` and two hexadecimal digits, so that `Living room` is
`Living:20room` here, and its topics can be found again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from bridge.errors import RefusedError
from bridge.messages import Kind

ID: Final = "%id%"
NAME: Final = "%name%"
ARGUMENT: Final = re.compile(r"%args(?:\.([^%]+))?%")
_PLAIN: Final = re.compile(rb"[^A-Za-z0-9._-]")
_ESCAPED: Final = re.compile(rb":([0-9a-f]{2})")


def escape(level: str) -> str:
    """The device id that stands for a level of a topic."""
    return _PLAIN.sub(lambda found: b":%02x" % found[0][0], level.encode()).decode()


def unescape(device_id: str) -> str:
    """The level of a topic that a device id stands for."""
    return _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), device_id.encode()).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Rule:
    """What arrives on topics of one pattern."""

    pattern: str
    kind: Kind
    profile: str = ""
    """The profile that it is part of."""
    stream: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    """What is taken of an object: by its place, with dots between the levels, the name that it gets. Empty: all."""
    wrap: str = ""
    """The name under which a payload that is no object is stored."""
    states: Mapping[str, bool] = field(default_factory=dict)
    """For presence: whether a value means that the device is there."""
    state_field: str = ""
    """Where that value stands, if the payload is an object."""
    error_field: str = ""
    """For responses: the field that says that the command failed."""
    listens: bool = False
    """Whether such devices can be sent commands: then whoever publishes here takes them, too."""

    def device_of(self, levels: list[str]) -> str | None:
        """The id of the device that a topic is of, None if it is of another pattern."""
        pattern = self.pattern.split("/")
        if len(pattern) != len(levels):
            return None
        device_id = None
        for wanted, level in zip(pattern, levels, strict=True):
            if wanted == ID:
                device_id = escape(level)
            elif wanted != level:
                return None
        return device_id

    def topic_of(self, device_id: str) -> str:
        """The topic of a device."""
        return self.pattern.replace(ID, unescape(device_id))

    def readings(self, payload: bytes) -> bytes:
        """The payload as telemetry. Raises RefusedError."""
        if not self.fields and not self.wrap:
            return payload
        value = _value(payload)
        if not isinstance(value, dict):
            if not self.wrap:
                raise RefusedError("bad_mapping", f"{self.pattern}: the payload is no object")
            return msgspec.json.encode({self.wrap: value})
        if not self.fields:
            return payload
        found = {name: _at(value, place) for place, name in self.fields.items()}
        found = {name: item for name, item in found.items() if item is not None}
        if not found:
            raise RefusedError("bad_mapping", f"{self.pattern}: the payload has none of {', '.join(self.fields)}")
        return msgspec.json.encode(found)

    def is_there(self, payload: bytes) -> bool:
        """What a message about presence says. Raises RefusedError."""
        value = _value(payload)
        if isinstance(value, dict) and self.state_field:
            value = _at(value, self.state_field)
        there = self.states.get(str(value))
        if there is None:
            raise RefusedError("bad_presence", f"{str(value)[:80]!r} is none of {', '.join(self.states)}")
        return there

    def failure(self, result: Any) -> str | None:
        """Why a command has failed that was answered so; None if it has not."""
        error = _at(result, self.error_field) if self.error_field and isinstance(result, dict) else None
        return None if error is None else f"{self.error_field}: {error}"


@dataclass(frozen=True, slots=True)
class Request:
    """How a command is sent: templates with `%id%`, `%name%`, `%args%` (as JSON) and `%args.KEY%` (a text as it is, all
    else as JSON) in them."""

    topic: str
    payload: str = "%args%"
    answered: bool = False
    """Whether a response will end it. Else it has succeeded when it is sent: nobody will ever say more."""

    def filter_of(self, device_id: str) -> str:
        """The filter that holds all that a device is sent so: it ends where the command's name begins."""
        levels = self.topic.replace(ID, unescape(device_id)).split("/")
        return "/".join([*levels[: levels.index(NAME)], "#"] if NAME in levels else levels)

    def render(self, device_id: str, name: str, args: Any) -> tuple[str, bytes]:
        """Topic and payload."""

        def argument(found: re.Match[str]) -> str:
            key = found[1]
            value = args if key is None else args.get(key) if isinstance(args, dict) else None
            if value is None:
                return ""
            return value if isinstance(value, str) else msgspec.json.encode(value).decode()

        topic = self.topic.replace(ID, unescape(device_id)).replace(NAME, _level(name))
        return topic, ARGUMENT.sub(argument, self.payload.replace(NAME, name)).encode()


def result_of(payload: bytes) -> Any:
    """A response's payload as a JSON value."""
    return _value(payload)


def _level(name: str) -> str:
    if not name or any(c in name for c in "/+#\0"):
        raise RefusedError("bad_command", f"{name[:80]!r} cannot be part of a topic")
    return name


def _value(payload: bytes) -> Any:
    try:
        return msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return payload.decode("utf-8", "replace")


def _at(value: Any, place: str) -> Any:
    for part in place.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def find(rules: Iterable[Rule], topic: str) -> tuple[Rule, str] | None:
    """The first rule that a topic fits, and the id of the device."""
    levels = topic.split("/")
    for rule in rules:
        device_id = rule.device_of(levels)
        if device_id is not None:
            return rule, device_id
    return None
