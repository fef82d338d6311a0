"""What the broker is told when it is made, and what it counts while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """How the broker listens and what it allows. Times are seconds; a port of None is not opened."""

    host: str = "127.0.0.1"
    port: int = 1883
    tls_port: int | None = None
    websocket_port: int | None = None
    websocket_tls_port: int | None = None
    websocket_origins: tuple[str, ...] = ()
    """Web pages that may connect by WebSocket, as `http://127.0.0.1:8080`. Without this any page that a user of this
    machine looks at could."""
    tls_certificate: Path | None = None
    """The certificate chain of the TLS ports, PEM."""
    tls_key: Path | None = None
    allow_anonymous: bool = True
    password_file: Path | None = None
    max_connections: int = 12_000
    max_connections_per_address: int = 0
    """0: no limit, for many devices may be behind one address. Loopback is never limited."""
    max_failed_logins: int = 10
    """Wrong passwords from one address within a minute; then it is refused without a look at the password."""
    max_packet_bytes: int = 262_144
    connect_timeout: float = 5.0
    receive_window: int = 1_000
    max_topic_levels: int = 32
    max_subscriptions: int = 100
    max_inflight: int = 100
    max_queued: int = 1_000
    max_sessions: int = 50_000
    """Sessions, connected or kept, beyond which no new one is kept."""
    session_expiry: float = 7 * 86_400.0
    """How long a kept session may be absent before it is forgotten."""
    max_retained: int = 1_000_000
    sys_interval: float = 10.0
    """Between two publications of $SYS; 0: none."""
    plugins: Mapping[str, Any] = field(default_factory=dict)
    plugin_timeout: float = 5.0
    """What an amqtt plugin may take to answer; then the answer is no."""


@final
class BrokerStats:
    """Plain numbers, read by the metrics when they are scraped."""

    __slots__ = (
        "bytes_received", "bytes_sent", "closed", "connections", "dropped", "messages_received", "messages_sent",
        "retained", "sessions", "subscriptions",
    )  # fmt: skip

    def __init__(self) -> None:
        self.connections = 0
        self.sessions = 0
        """Connected or kept."""
        self.subscriptions = 0
        self.retained = 0
        """Topics with a retained message."""
        self.closed: Counter[str] = Counter()
        """Ended connections by cause."""
        self.dropped: Counter[str] = Counter()
        """Deliveries that no subscriber got, by reason."""
        self.bytes_received = 0
        self.bytes_sent = 0
        self.messages_received = 0
        """PUBLISH packets on ordinary topics; the ledger counts those on the bridge's own."""
        self.messages_sent = 0
