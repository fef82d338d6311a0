"""The tables `[profiles.NAME]`: kinds of devices, each as far as it differs from the default."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from pydantic import AfterValidator, Field, model_validator

from bridge.errors import SettingsError
from bridge.mapping import ID, Request, Rule
from bridge.mapping import NAME as COMMAND
from bridge.messages import Kind
from bridge.payloads import Format
from bridge.profiles import DEFAULT, Profile, Profiles
from bridge.schemas import Schema
from bridge.settings.sections import Count, Seconds, Section
from bridge.topics import Grants

if TYPE_CHECKING:
    from bridge.settings import Settings


def _pattern(topic: str) -> str:
    levels = topic.split("/")
    rest = [level for level in levels if level not in (ID, COMMAND)]
    if levels.count(ID) != 1 or any(set("+#%\0") & set(level) for level in rest):
        raise ValueError(f"write {ID} as one level, once, and no wildcards")
    return topic


def _filter(topic_filter: str) -> str:
    levels = topic_filter.split("/")
    misplaced = any(set("+#") & set(level) and level not in ("+", "#") for level in levels)
    if not topic_filter or misplaced or "#" in levels[:-1] or "\0" in topic_filter or topic_filter.startswith("$"):
        raise ValueError("write an MQTT topic filter: + and # as whole levels, # only as the last one")
    return topic_filter


Pattern = Annotated[str, AfterValidator(_pattern)]
Filter = Annotated[str, AfterValidator(_filter)]
Stream = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]

NAME: Final = r"^[A-Za-z0-9_-]{1,64}$"


class TopicSection(Section):
    """What foreign messages mean: one of telemetry, event, presence, response."""

    telemetry: Stream | None = None
    event: Stream | None = None
    presence: dict[str, bool] | None = None
    response: bool = False
    fields: dict[str, str] = Field(default_factory=dict)
    wrap: str = ""
    state_field: str = ""
    error_field: str = ""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum((self.telemetry is not None, self.event is not None, self.presence is not None, self.response)) != 1:
            raise ValueError("say one of telemetry, event, presence, response")
        return self

    def rule(self, pattern: str, profile: str, *, listens: bool) -> Rule:
        """What it says of the topics of a pattern."""
        if self.telemetry is not None:
            kind = Kind.TELEMETRY
        elif self.event is not None:
            kind = Kind.EVENT
        else:
            kind = Kind.PRESENCE if self.presence is not None else Kind.RESPONSE
        return Rule(
            pattern=pattern,
            kind=kind,
            profile=profile,
            stream=self.telemetry or self.event or "",
            fields=self.fields,
            wrap=self.wrap,
            states=self.presence or {},
            state_field=self.state_field,
            error_field=self.error_field,
            listens=listens,
        )


class RequestSection(Section):
    """How a command is sent to a foreign device."""

    topic: Pattern
    payload: str = "%args%"
    answered: bool = False


class ProfileSection(Section):
    """What devices of one kind have in common. What is not set is as in the profile named default; what is not set
    there either is as in [agent] and [command]."""

    description: str = Field("", max_length=500, description="What these devices are, for people.")
    match: tuple[str, ...] = Field(
        (), description='Patterns of device ids, as ["freezer-*"]: unknown devices with such an id get this profile.'
    )
    agent: Annotated[str, Field(pattern=r"^([A-Za-z_][\w.]*:[A-Za-z_]\w*|[\w.-]+)?$")] | None = Field(
        None,
        description='Device logic, as "package.module:Class" or by the name under which an installed package has'
        ' registered it; "" for none.',
    )
    ping_interval: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None, description="Seconds of silence after which a device is pinged; 0 for devices that answer no pings."
    )
    ping_misses: Count | None = Field(
        None, description="Unanswered pings after which a connected device counts as silent."
    )
    command_ttl: Seconds | None = Field(
        None, description="Seconds until a command expires that does not say so itself."
    )
    command_attempts: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None, description="Requests of one command that a device may be sent while it acknowledges none."
    )
    command_retry_after: Seconds | None = Field(
        None, description="Seconds without an acknowledgement after which the request is sent again."
    )
    commands: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Commands that these devices know: by name the JSON Schema of the arguments, as"
        ' [profiles.freezer.commands.defrost.properties.minutes] type = "integer".',
    )
    publish: tuple[Filter, ...] | None = Field(
        None,
        description="Topic filters that such devices, logged in, may publish to beside their own topics; %id% is the"
        ' device\'s id, as "site/%id%/#".',
    )
    subscribe: tuple[Filter, ...] | None = Field(
        None, description='Topic filters that they may subscribe to beside their own, as "firmware/#".'
    )
    topics: dict[Pattern, TopicSection] = Field(
        default_factory=dict,
        description="What the topics of foreign devices mean, by pattern, as"
        ' "tele/%id%/SENSOR" = { telemetry = "default" }; see docs/profiles.md.',
    )
    requests: dict[str, RequestSection] = Field(
        default_factory=dict,
        description='How foreign devices are sent commands, by name ("*" for all others), as'
        ' set = { topic = "zigbee2mqtt/%id%/set" }; see docs/profiles.md.',
    )
    format: Format | None = Field(
        None, description="How payloads are written: json, cbor, msgpack, or auto, which tells by the first byte."
    )
    json_schema: dict[str, Path] = Field(
        default_factory=dict,
        description='Files with the JSON Schema of readings, by stream ("event/door" for events, "*" for all others),'
        ' as { default = "freezer.json" }; paths begin at the working directory.',
    )


def profiles_of(settings: Settings) -> Profiles:
    """All profiles, complete."""
    sections = {DEFAULT: ProfileSection(), **settings.profiles}
    default = sections[DEFAULT]
    return Profiles(
        (_complete(name, section, default, settings) for name, section in sections.items()),
        for_unknown=settings.registry.profile,
    )


def _complete(name: str, section: ProfileSection, default: ProfileSection, settings: Settings) -> Profile:
    def pick(key: str, otherwise: Any) -> Any:
        for source in (section, default):
            value = getattr(source, key)
            if value is not None:
                return value
        return otherwise

    command = settings.command
    foreign = bool(section.topics)
    # Foreign devices know nothing of our pings; and most acknowledge nothing, so what they are asked is asked once.
    ping_interval = pick("ping_interval", 0.0 if foreign else settings.agent.ping_interval)
    return Profile(
        name=name,
        description=section.description,
        match=section.match,
        agent=pick("agent", ""),
        ping_interval=ping_interval or math.inf,
        ping_misses=pick("ping_misses", settings.agent.ping_misses),
        command_ttl=pick("command_ttl", command.ttl),
        command_max_ttl=command.max_ttl,
        command_attempts=pick("command_attempts", 1 if section.requests else command.attempts),
        command_retry_after=pick("command_retry_after", command.retry_after),
        commands=default.commands | section.commands,
        arguments={
            command: _compiled(document, f"profiles.{name}.commands.{command}")
            for command, document in (default.commands | section.commands).items()
        },
        grants=Grants(pick("publish", ()), pick("subscribe", ())),
        rules=tuple(
            rule.rule(pattern, name, listens=bool(section.requests)) for pattern, rule in section.topics.items()
        ),
        requests={
            command: Request(request.topic, request.payload, request.answered)
            for command, request in section.requests.items()
        },
        format=pick("format", Format.JSON),
        schemas={
            stream: _schema(path, f"profiles.{name}.json_schema.{stream}")
            for stream, path in (default.json_schema | section.json_schema).items()
        },
    )


def _schema(path: Path, key: str) -> Schema:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{key}: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{key}: {path} is not JSON: {str(error)[:500]}") from error
    return _compiled(document, f"{key}: {path}")


def _compiled(document: Any, what: str) -> Schema:
    try:
        return Schema(document)
    except ValueError as error:
        raise SettingsError(f"{what} is no JSON Schema: {str(error)[:500]}") from error
