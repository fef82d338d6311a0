"""How the broker listens, and what it allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """How the broker listens and what it allows; times in seconds."""

    host: str = "127.0.0.1"
    port: int = 1883
    allow_anonymous: bool = True
    password_file: Path | None = None
    max_connections: int = 12_000
    max_packet_bytes: int = 262_144
    connect_timeout: float = 5.0
    receive_window: int = 1_000
    max_topic_levels: int = 32
    max_subscriptions: int = 100
    max_inflight: int = 100
    max_queued: int = 1_000
    max_retained: int = 1_000_000
    max_sessions: int = 100_000
    session_expiry: float = 30 * 86_400.0
    """How long a session is kept for a client that is away."""
    plugins: Mapping[str, Any] = field(default_factory=dict)
