"""Every setting, its default and its reason; the only reader of environment and files for the bridge itself.

A setting is taken from the first of these that has it: the command line, the environment (`BRIDGE_…`, `__` between
levels), `.env` in the working directory, the TOML file (`--config` or `BRIDGE_CONFIG`), the default.
`Settings(...)` itself reads nothing but its arguments; `Settings.load` reads them all.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Annotated, Any, Final, Literal, Self, final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings.exceptions import SettingsError as SourceError

from bridge.errors import SettingsError
from bridge.ports import is_loopback

PREFIX: Final = "BRIDGE_"
CONFIG_VARIABLE: Final = "BRIDGE_CONFIG"
NOT_SETTINGS: Final = frozenset({CONFIG_VARIABLE, "BRIDGE_URL", "BRIDGE_TOKEN"})
"""Variables with our prefix that are not settings: where the TOML file is, and what the operator's commands use."""
MASK: Final = "********"
SECRETS: Final = ("http.token", "database.url", "mqtt.plugins")
"""Settings that are, or hold, secrets."""

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Upper = BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value)


def _hard_to_guess(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value()) < 8:
        raise ValueError("use at least 8 characters")
    return secret


Secret = Annotated[SecretStr, AfterValidator(_hard_to_guess)]


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Mqtt(Section):
    """The MQTT broker."""

    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on. Beyond loopback nobody may be anonymous."
    )
    port: Port = Field(1883, description="TCP port to listen on; 0 takes any free one.")
    allow_anonymous: bool = Field(
        True, description="Whether clients may connect without a password; only possible on a loopback address."
    )
    password_file: Path | None = Field(
        None, description="Users and their hashed passwords, one a line; `mqtt-bridge passwd` writes it."
    )
    tls_port: Port | None = Field(None, description="TCP port for MQTT over TLS; needs a certificate.")
    websocket_port: Port | None = Field(None, description="TCP port for MQTT over WebSocket.")
    websocket_tls_port: Port | None = Field(None, description="TCP port for MQTT over WebSocket and TLS.")
    websocket_origins: tuple[str, ...] = Field(
        (), description="Web pages that may connect by WebSocket, as http://127.0.0.1:8080; no others may."
    )
    tls_certificate: Path | None = Field(None, description="PEM file of the TLS ports' certificate chain.")
    tls_key: Path | None = Field(None, description="PEM file of the certificate's key.")
    max_connections: Count = Field(
        12_000, description="Connections at once. Each needs a file descriptor: `mqtt-bridge doctor` checks the limit."
    )
    max_connections_per_address: int = Field(
        0, ge=0, description="Connections from one address, 0 for any number; loopback is never limited."
    )
    max_failed_logins: Count = Field(
        10, description="Wrong passwords from one address within a minute; then it is refused without a look at them."
    )
    max_packet_bytes: int = Field(
        262_144, ge=128, le=268_435_460, description="Largest packet in bytes; a larger one closes its connection."
    )
    connect_timeout: Seconds = Field(
        5.0, description="Seconds from the TCP connection to a complete CONNECT: silent strangers hold no connection."
    )
    receive_window: int = Field(
        1_000,
        ge=1,
        le=65_535,
        description="Messages of one connection received and not yet settled; then its socket is not read.",
    )
    max_topic_levels: Count = Field(32, description="Levels of a topic or filter: bounds the work of matching it.")
    max_subscriptions: Count = Field(100, description="Subscriptions of one client: bounds the subscription tree.")
    max_inflight: int = Field(
        100, ge=1, le=65_535, description="QoS 1 and 2 messages sent to one client and not yet acknowledged by it."
    )
    max_queued: Count = Field(
        1_000, description="Messages kept for one session that is away or slow; further ones are dropped and counted."
    )
    max_sessions: Count = Field(50_000, description="Sessions, connected or kept; further clients are refused.")
    session_expiry: Seconds = Field(
        604_800.0, description="Seconds that the session of an absent client is kept: a client that never returns."
    )
    max_retained: Count = Field(1_000_000, description="Topics with a retained message; further ones are not kept.")
    sys_interval: float = Field(10.0, ge=0, description="Seconds between two publications of $SYS topics; 0 for none.")
    plugin_timeout: Seconds = Field(5.0, description="Seconds that a plugin may take to answer; then the answer is no.")
    plugins: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="amqtt plugins: the class's dotted path and its configuration, as"
        ' {"amqtt.plugins.authentication.AnonymousAuthPlugin" = { allow_anonymous = true }}.',
    )


class Http(Section):
    """The API, health and metrics."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on. Beyond loopback a token is needed.")
    port: Port = Field(8080, description="TCP port to listen on; 0 takes any free one.")
    token: Secret | None = Field(
        None, description="What callers of the API must send as `Authorization: Bearer …`, at least 8 characters."
    )


class DatabaseSection(Section):
    """Where everything is stored."""

    url: str = Field(
        "sqlite+aiosqlite:///{data_dir}/bridge.db",
        min_length=1,
        description="SQLAlchemy URL, sqlite+aiosqlite:///… or postgresql+asyncpg://user:password@host/name;"
        " {data_dir} stands for the data directory.",
    )
    pool_size: Count = Field(5, description="Connections for reading; one more is used for writing.")
    migrate: bool = Field(
        True,
        description="Whether `serve` brings the schema up to date; without it `mqtt-bridge migrate` must.",
    )


class Writer(Section):
    """The group-committing writer: larger batches cost less per row, waiting costs latency."""

    batch_rows: Count = Field(4_096, description="Rows per commit at most.")
    batch_wait: float = Field(
        0.002, ge=0, le=1, description="Seconds that the first row of a batch waits for others, at most 1."
    )
    capacity: Count = Field(
        50_000, description="Rows that may wait for a commit; then connections are not read until there is room."
    )


class Agent(Section):
    """The agents, one per device."""

    ping_interval: Seconds = Field(30.0, description="Seconds of silence after which a device is pinged.")
    ping_misses: Count = Field(3, description="Unanswered pings after which a connected device counts as silent.")
    sleep_after: Seconds = Field(60.0, description="Seconds without work after which an agent gives up its coroutine.")
    evict_after: Seconds = Field(
        600.0, description="Seconds without work after which an agent leaves memory; at least sleep_after."
    )
    mailbox_limit: Count = Field(
        10_000,
        description="Messages waiting for one agent; then QoS 0 is dropped and counted, and QoS 1 and 2 are slowed.",
    )
    restarts: Count = Field(5, description="Restarts of a failing agent within restart_window; then it rests.")
    restart_window: Seconds = Field(60.0, description="Seconds over which restarts are counted.")
    snapshot_interval: Seconds = Field(
        5.0, description="Seconds between two stored states of a busy device: what a crash makes it forget."
    )


class CommandSection(Section):
    """Commands to devices."""

    ttl: Seconds = Field(60.0, description="Seconds until a command expires that does not say so itself.")
    max_ttl: Seconds = Field(86_400.0, description="Longest ttl in seconds that a command may ask for.")


class Log(Section):
    """What the bridge says."""

    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], Upper] = Field(
        "INFO", description="Least important lines that are printed: DEBUG, INFO, WARNING or ERROR."
    )
    format: Literal["console", "json"] = Field(
        "console", description="`console` for people, `json` (one object a line) for log collectors."
    )


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
    agent: Agent = Agent()
    command: CommandSection = CommandSection()
    log: Log = Log()

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
        if self.http.token is None and not is_loopback(self.http.host):
            raise ValueError(
                f"http.host is {self.http.host}, which others can reach: set http.token (BRIDGE_HTTP__TOKEN),"
                " or listen on 127.0.0.1"
            )
        for small, large in (
            ("command.ttl", "command.max_ttl"),
            ("agent.sleep_after", "agent.evict_after"),
            ("writer.batch_rows", "writer.capacity"),
        ):
            if self._value(small) > self._value(large):
                raise ValueError(f"{small} is {self._value(small)}, more than {large}, which is {self._value(large)}")
        return self

    @classmethod
    def load(cls, config: Path | None = None, **overrides: Any) -> Settings:
        """The settings from all sources. `config` is the TOML file, `overrides` come first (`mqtt={"port": 0}`).

        Raises SettingsError: a file that cannot be read, an unknown key (with the nearest right one), a wrong value.
        """
        merged: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for source, values in _layers(cls, config, overrides):
            for key, value in _leaves(cls, values, source):
                if key not in origins:
                    origins[key] = source + _variable(key) if source in _VARIABLES else source
                    _put(merged, key, value)
        try:
            settings = cls(**merged)
        except ValidationError as error:
            raise SettingsError(_explain(error, origins)) from None
        settings._origins.update(origins)
        return settings

    @property
    def database_url(self) -> str:
        """`database.url` with the data directory in its place."""
        return self.database.url.replace("{data_dir}", str(self.data_dir))

    def origins(self) -> dict[str, str]:
        """Where each setting came from, by its dotted key, in the order of the model."""
        return {key: self._origins.get(key, "default") for key in keys()}

    def shown(self) -> dict[str, Any]:
        """Each setting's value by its dotted key, secrets masked."""
        return {key: _masked(key, self._value(key)) for key in keys()}

    def _value(self, key: str) -> Any:
        section, _, name = key.rpartition(".")
        return getattr(getattr(self, section) if section else self, name)


_VARIABLES: Final = ("environment ", ".env ")
"""Sources whose keys are variables, as they are named before the variable."""


def keys() -> Iterator[str]:
    """The dotted key of every setting."""
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from (f"{name}.{inner}" for inner in field.annotation.model_fields)
        else:
            yield name


def _variable(key: str) -> str:
    return PREFIX + key.upper().replace(".", "__")


def _layers(
    cls: type[Settings], config: Path | None, overrides: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What each source says, the strongest first."""
    yield "command line", overrides
    try:
        environment, dotenv = EnvSettingsSource(cls), DotEnvSettingsSource(cls)
        for name, source in zip(_VARIABLES, (environment, dotenv), strict=True):
            _check_variables(name, source.env_vars)
            # Built anew from our own variables alone: whatever else is in a .env file belongs to others.
            yield name, EnvSettingsSource.__call__(source)
    except SourceError as error:
        # Raised only for the variables of whole groups and tables; the text names the field, never its value.
        raise SettingsError(f"{error}: a whole group or table in one variable must be JSON") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f".env is not UTF-8: {error}") from None
    named = os.environ.get(CONFIG_VARIABLE) or dotenv.env_vars.get(CONFIG_VARIABLE.lower())
    path = config or (Path(named) if named else None)
    if path is None:
        return
    if not path.is_file():
        raise SettingsError(f"{path}: there is no such settings file (--config or {CONFIG_VARIABLE})")
    try:
        yield str(path), TomlConfigSettingsSource(cls, path)()
    except (TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None


def _check_variables(source: str, variables: Mapping[str, str | None]) -> None:
    known = {_variable(key): key for key in keys()}
    groups = {name.rpartition("__")[0] for name in known if "__" in name}
    for variable in variables:
        name = variable.upper()
        if name.startswith(PREFIX) and name not in known and name not in groups and name not in NOT_SETTINGS:
            raise SettingsError(f"{source}{name}: there is no such setting{_nearest(name, [*known, *NOT_SETTINGS])}")


def _leaves(cls: type[Settings], values: Mapping[str, Any], source: str) -> Iterator[tuple[str, Any]]:
    """Each setting in a source's nested values by its dotted key. Raises SettingsError for an unknown one."""
    known = set(keys())
    for name, value in values.items():
        field = cls.model_fields.get(name)
        section = field.annotation if field is not None else None
        if isinstance(section, type) and issubclass(section, Section):
            if not isinstance(value, Mapping):
                raise SettingsError(f"{source.strip()}: {name} is a group of settings, not {value!r}")
            inner = {f"{name}.{key}": item for key, item in value.items()}
        else:
            inner = {name: value}
        for key, item in inner.items():
            if key not in known:
                raise SettingsError(
                    f"{source.strip()}: {key}: there is no such setting{_nearest(key, known | set(cls.model_fields))}"
                )
            yield key, item


def _nearest(name: str, known: Iterator[str] | list[str] | set[str]) -> str:
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else "; `mqtt-bridge config` lists them all"


def _put(merged: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    (merged.setdefault(section, {}) if section else merged)[name] = value


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    lines = []
    for fault in error.errors():
        place = [str(part) for part in fault["loc"]]
        key = next((key for key in (".".join(place[:2]), ".".join(place[:1])) if key in origins), ".".join(place))
        what = fault["msg"].removeprefix("Value error, ")
        if not key:
            lines.append(what)
            continue
        given = _masked(key, fault["input"])
        lines.append(f"{key} is {given!r} ({origins.get(key, 'default')}): {what[:1].lower()}{what[1:]}")
    return "; ".join(lines)


def _masked(key: str, value: Any) -> Any:
    """`value` as it may be shown: neither secrets, nor the password in a database URL, nor what a plugin is told, as it
    may hold secrets that cannot be told from the rest."""
    if key == "mqtt.plugins" and isinstance(value, dict):
        return dict.fromkeys(value, MASK)
    if key == "database.url" and isinstance(value, str):
        # To the last @: a password may hold one that is not quoted.
        value = re.sub(r"(://[^/:@]*):.*@", rf"\1:{MASK}@", value)
        return re.sub(r"([?&][^=&]*password=)[^&]*", rf"\1{MASK}", value, flags=re.IGNORECASE)
    return MASK if key in SECRETS and value is not None else value
