"""The groups of settings: what each one is, its default and its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Days = Annotated[float, Field(ge=0, allow_inf_nan=False)]
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

    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on. Beyond loopback every caller needs a token."
    )
    port: Port = Field(8080, description="TCP port to listen on; 0 takes any free one.")
    require_token: bool = Field(
        False, description="Whether callers need a token on a loopback address, too; beyond it they always do."
    )
    token: Secret | None = Field(
        None,
        description="An admin's token for automation, at least 8 characters; callers then need a token everywhere."
        " The others are made with `mqtt-bridge tokens add`.",
    )
    metrics_token: bool = Field(False, description="Whether /metrics needs a token, where the API does.")
    hosts: tuple[str, ...] = Field(
        (),
        description="Names that the bridge may be called by, as bridge.example.com; its addresses and localhost always"
        " will do. Without a list any name will do where a token is needed, and none where it is not.",
    )
    proxies: tuple[str, ...] = Field(
        (), description="Addresses of reverse proxies whose X-Forwarded-For and X-Forwarded-Proto are believed."
    )
    session_lifetime: Seconds = Field(43_200.0, description="Seconds from a login on the page to its end.")
    max_failed_logins: Count = Field(
        10, description="Wrong tokens from one address within a minute; then it is refused without a look at them."
    )
    max_streams: Count = Field(50, description="Clients that may follow /api/v1/stream at once.")
    audit_lines: Count = Field(100_000, description="Lines of the audit trail that are kept, the latest.")


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
    timescaledb: Literal["auto", "off"] = Field(
        "auto",
        description="`auto`: a new database keeps telemetry in a hypertable where the PostgreSQL server has TimescaleDB"
        " loaded, else in partitions of its own; `off`: always in those. A database that is there stays as it is.",
    )


class Writer(Section):
    """The group-committing writer: larger batches cost less per row, waiting costs latency."""

    batch_rows: Count = Field(2_048, description="Rows per commit at most.")
    batch_wait: float = Field(
        0.002, ge=0, le=1, description="Seconds that the first row of a batch waits for others, at most 1."
    )
    capacity: Count = Field(
        50_000, description="Rows that may wait for a commit; then connections are not read until there is room."
    )
    patience: Seconds = Field(
        10.0, description="Seconds that a command or another change waits for the database until it is refused."
    )


class Spool(Section):
    """Where rows go while the database is away or slow: a file in the data directory."""

    enabled: bool = Field(
        True, description="Whether there is one; without it nothing is acknowledged while the database is away."
    )
    after: Seconds = Field(2.0, description="Seconds that a commit may take until rows go into the spool instead.")
    max_bytes: int = Field(
        1_073_741_824, ge=1_048_576, description="Bytes that it may hold; at that the next setting applies."
    )
    at_limit: Literal["stop", "drop_oldest"] = Field(
        "stop",
        description="`stop`: connections are not read until there is room, and nothing is lost."
        " `drop_oldest`: the oldest readings are dropped and counted, although they were acknowledged.",
    )


class Agent(Section):
    """The agents, one per device."""

    ping_interval: Seconds = Field(30.0, description="Seconds of silence after which a device is pinged.")
    ping_misses: Count = Field(3, description="Unanswered pings after which a connected device counts as silent.")
    ping_rate: Count = Field(
        500, description="Pings a second to all devices together; a larger fleet is pinged less often instead."
    )
    wake_grace: Seconds = Field(
        30.0, description="Seconds after the announced end of a device's sleep until its absence counts."
    )
    sleep_after: Seconds = Field(60.0, description="Seconds without work after which an agent gives up its coroutine.")
    evict_after: Seconds = Field(
        600.0,
        description="Seconds of sleep after which an agent leaves memory (up to twice that); at least sleep_after.",
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
    handler_timeout: Seconds = Field(
        30.0, description="Seconds that a handler of device logic may take; then it is cancelled and has failed."
    )
    offload_workers: int = Field(
        0,
        ge=0,
        description="Processes, and as many threads, for what device logic offloads; 0: one per processor, but one.",
    )


class Registry(Section):
    """Which devices the bridge takes on. Kinds of devices are described in [profiles.NAME]."""

    unknown: Literal["accept", "quarantine", "refuse"] = Field(
        "accept",
        description="What becomes of a device that is not in the registry: `accept` takes it on, `quarantine` keeps its"
        " messages as dead letters until it is approved, `refuse` keeps its messages as dead letters and forgets it.",
    )
    profile: str = Field("default", description="Profile of devices that are taken on and fit no profile's `match`.")


class CommandSection(Section):
    """Commands to devices."""

    ttl: Seconds = Field(60.0, description="Seconds until a command expires that does not say so itself.")
    max_ttl: Seconds = Field(86_400.0, description="Longest ttl in seconds that a command may ask for.")
    attempts: int = Field(
        3, ge=1, le=100, description="Requests of one command that a device may be sent while it acknowledges none."
    )
    retry_after: Seconds = Field(
        10.0, le=86_400.0, description="Seconds without an acknowledgement after which the request is sent again."
    )


class TwinSection(Section):
    """Device twins."""

    max_bytes: int = Field(
        32_768, ge=2, le=1_048_576, description="Bytes of each part of a twin, as compact JSON, and of one patch."
    )
    max_depth: int = Field(10, ge=1, le=100, description="Levels of objects and arrays within each other.")


class Retention(Section):
    """For how many days things are kept; 0 keeps them for ever."""

    telemetry: Days = Field(0.0, description="Days that readings and events are kept, counted from their receipt.")
    minutes: Days = Field(90.0, description="Days that rollups by minute (count, min, max, sum, last) are kept.")
    hours: Days = Field(0.0, description="Days that rollups by hour are kept.")
    presence: Days = Field(90.0, description="Days that changes of presence are kept.")
    twins: Days = Field(30.0, description="Days that the changes of twins are kept.")
    commands: Days = Field(90.0, description="Days that finished commands and their steps are kept.")
    dead_letters: Days = Field(30.0, description="Days that dead letters are kept.")
    dead_letters_max: int = Field(10_000, ge=0, description="Dead letters kept at most, the newest; 0 for any number.")


class Tracing(Section):
    """Spans for OpenTelemetry, one for each committed batch and each finished command."""

    endpoint: str | None = Field(
        None,
        description="Where to send spans (OTLP over HTTP), such as http://127.0.0.1:4318/v1/traces; needs the extra"
        " `otel`. Without it there is no tracing.",
    )


class Log(Section):
    """What the bridge says."""

    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], Upper] = Field(
        "INFO", description="Least important lines that are printed: DEBUG, INFO, WARNING or ERROR."
    )
    format: Literal["console", "json"] = Field(
        "console", description="`console` for people, `json` (one object a line) for log collectors."
    )
