"""Profiles: what devices of one kind have in common. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final, final

from bridge.errors import RefusedError
from bridge.mapping import Request, Rule
from bridge.payloads import Format, to_json
from bridge.readings import Reading, decode
from bridge.schemas import EVERY_STREAM, Schema
from bridge.topics import NO_GRANTS, Grants

DEFAULT: Final = "default"
"""The profile of devices that have no other, and what every other profile falls back to."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of device, complete: whatever its settings leave open has been filled in. Times are seconds."""

    name: str = DEFAULT
    description: str = ""
    match: tuple[str, ...] = ()
    """Patterns of ids, as `freezer-*`: unknown devices with such an id get this profile."""
    agent: str = ""
    """Device logic as `module:Class`; empty when the bridge only stores and commands."""
    ping_interval: float = 30.0
    """Silence after which a device is pinged; infinity: never."""
    ping_misses: int = 3
    command_ttl: float = 60.0
    command_max_ttl: float = 86_400.0
    command_attempts: int = 3
    command_retry_after: float = 10.0
    commands: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The commands that such a device knows: by name the JSON Schema of their arguments. It may know others."""
    arguments: Mapping[str, Schema] = field(default_factory=dict)
    """The same schemas, to check arguments with."""
    grants: Grants = NO_GRANTS
    """What such a device may publish and subscribe to beside its own topics."""
    rules: tuple[Rule, ...] = ()
    """What foreign topics mean."""
    requests: Mapping[str, Request] = field(default_factory=dict)
    """How foreign devices are sent commands: by the command's name, `*` for all others."""
    format: Format = Format.JSON
    schemas: Mapping[str, Schema] = field(default_factory=dict)
    """What readings must look like, by stream (`event/door` for events); `*` for all others."""
    plain: bool = field(init=False, default=True)
    """Whether payloads are JSON and of any form. Stored, as it is asked for every message."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "plain", self.format is Format.JSON and not self.schemas)

    def check_arguments(self, name: str, args: Any) -> None:
        """Raises RefusedError `bad_arguments` when they are not as the command's schema has them. No arguments are `{}`
        to a schema."""
        schema = self.arguments.get(name)
        fault = None if schema is None else schema.fault({} if args is None else args)
        if fault is not None:
            raise RefusedError("bad_arguments", f"arguments of {name}: {fault}")

    def request(self, name: str) -> Request | None:
        """How a command is sent; None if in the bridge's own way."""
        return self.requests.get(name) or self.requests.get("*")

    def decode(self, payload: bytes, stream: str, received_at: float) -> Reading | list[Reading]:
        """The readings of a payload, as `readings.decode` gives them. Raises RefusedError also for what is not in the
        profile's format, or not as its schema has it (`schema`)."""
        found = decode(to_json(payload, self.format), received_at)
        schema = self.schemas.get(stream) or self.schemas.get(EVERY_STREAM)
        if schema is not None:
            schema.check(found)
        return found


@final
class Profiles:
    """All profiles. There is always one named `default`."""

    def __init__(self, profiles: Iterable[Profile] = (), *, for_unknown: str = DEFAULT) -> None:
        """`for_unknown` is the profile of unknown devices whose id no `match` fits."""
        self._by_name: Final = {profile.name: profile for profile in profiles}
        self.default: Final = self._by_name.setdefault(DEFAULT, Profile())
        self._for_unknown: Final = self.get(for_unknown)

    def __iter__(self) -> Iterator[Profile]:
        """In the order of the settings."""
        return iter(self._by_name.values())

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def get(self, name: str) -> Profile:
        """The profile `name`. A device may be stored with a profile that has been taken out of the settings since: it
        is treated by the default one."""
        return self._by_name.get(name, self.default)

    def of_unknown(self, device_id: str) -> Profile:
        """The profile of a device that is heard of for the first time: the first one with a pattern that fits."""
        for profile in self._by_name.values():
            if any(fnmatchcase(device_id, pattern) for pattern in profile.match):
                return profile
        return self._for_unknown
