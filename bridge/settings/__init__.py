"""Every setting of the bridge.

A setting is taken from the first of these that has it: the command line, the environment (`BRIDGE_…`, `__` between
levels), `.env` in the working directory, the TOML file (`--config` or `BRIDGE_CONFIG`), the default.
`Settings(...)` itself reads nothing but its arguments; `Settings.load` reads them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self, final

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from bridge.errors import SettingsError
from bridge.profiles import DEFAULT, Profiles
from bridge.settings import sources
from bridge.settings.masking import masked
from bridge.settings.profiles import NAME, ProfileSection, profiles_of
from bridge.settings.sections import (
    Agent,
    CommandSection,
    DatabaseSection,
    Http,
    Log,
    Mqtt,
    Registry,
    Retention,
    Seconds,
    Section,
    Spool,
    Tracing,
    TwinSection,
    Writer,
)
from bridge.settings.sinks import SinkSection
from bridge.settings.sources import PREFIX

__all__ = ["PREFIX", "Section", "Settings", "keys"]


@final
class Settings(BaseSettings):
    """All settings. `load` reads them; the constructor takes nothing but its arguments and the defaults."""

    # A variable that is set to nothing counts as not set: compose files pass on empty ones.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        env_file=".env",
        env_file_encoding="utf-8",
        extra="forbid",
        frozen=True,
    )

    data_dir: Path = Field(Path("data"), description="Directory of the database and the log file; made if missing.")
    topic_root: str = Field(
        "devices", min_length=1, max_length=200, description="First level or levels of the bridge's own topics."
    )
    shutdown_timeout: Seconds = Field(
        10.0, description="Seconds that stopping may take; what is not committed by then is not acknowledged."
    )
    mqtt: Mqtt = Mqtt()
    http: Http = Http()
    database: DatabaseSection = DatabaseSection()
    writer: Writer = Writer()
    spool: Spool = Spool()
    agent: Agent = Agent()
    command: CommandSection = CommandSection()
    twin: TwinSection = TwinSection()
    retention: Retention = Retention()
    registry: Registry = Registry()
    log: Log = Log()
    tracing: Tracing = Tracing()
    profiles: dict[Annotated[str, Field(pattern=NAME)], ProfileSection] = Field(
        default_factory=dict, description="Kinds of devices: a table [profiles.NAME] for each."
    )
    sinks: dict[Annotated[str, Field(pattern=NAME)], SinkSection] = Field(
        default_factory=dict, description="Who is passed what is committed: a table [sinks.NAME] for each."
    )

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The constructor is pure: `load` reads the other sources, because it must know what came from where."""
        return (init_settings,)

    @field_validator("topic_root")
    @classmethod
    def _topic_root(cls, root: str) -> str:
        if re.search(r"[+#\0]", root) or root.startswith("$") or "" in root.split("/"):
            raise ValueError("use levels of at least one character, without + # NUL, the first not starting with $")
        return root

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for small, large in (
            ("command.ttl", "command.max_ttl"),
            ("agent.sleep_after", "agent.evict_after"),
            ("writer.batch_rows", "writer.capacity"),
        ):
            if self._value(small) > self._value(large):
                raise ValueError(f"{small} is {self._value(small)}, more than {large}, which is {self._value(large)}")
        for name, profile in self.profiles.items():
            if profile.command_ttl is not None and profile.command_ttl > self.command.max_ttl:
                raise ValueError(f"profiles.{name}.command_ttl is {profile.command_ttl}, more than command.max_ttl")
        if self.registry.profile not in (DEFAULT, *self.profiles):
            raise ValueError(f"registry.profile is {self.registry.profile!r}, and there is no such profile")
        return self

    @classmethod
    def load(cls, config: Path | None = None, **overrides: Any) -> Settings:
        """The settings from all sources. `config` is the TOML file, `overrides` come first (`mqtt={"port": 0}`).

        Raises SettingsError: a file that cannot be read, an unknown key (with the nearest right one), a wrong value.
        """
        merged: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for source, values in sources.layers(cls, config, overrides):
            for key, value in sources.leaves(cls, values, source):
                if key not in origins:
                    origins[key] = sources.origin(source, key)
                    sources.put(merged, key, value)
        try:
            settings = cls(**merged)
        except ValidationError as error:
            raise SettingsError(sources.explain(error, origins)) from None
        settings._origins.update(origins)
        return settings

    @property
    def database_url(self) -> str:
        """`database.url` with the data directory in its place."""
        return self.database.url.replace("{data_dir}", str(self.data_dir))

    def origins(self) -> dict[str, str]:
        """Where each setting came from, by its dotted key, in the order of the model."""
        return {key: self._origins.get(key, "default") for key in self._keys()}

    def shown(self) -> dict[str, Any]:
        """Each setting's value by its dotted key, secrets masked."""
        return {key: masked(key, self._value(key)) for key in self._keys()}

    def complete_profiles(self) -> Profiles:
        """All profiles, with what their settings leave open filled in."""
        return profiles_of(self)

    def _keys(self) -> Iterator[str]:
        """The dotted key of every setting; of profiles, what is set."""
        for key in keys():
            inner = [name for name in self._origins if name.startswith(key + ".")]
            yield from inner or (key,)

    def _value(self, key: str) -> Any:
        value: Any = self
        for part in key.split("."):
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        return value


def keys() -> Iterator[str]:
    """The dotted key of every setting."""
    return sources.keys(Settings)
