"""The listening sockets: plain, TLS and WebSocket, and how many connections they take."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol, final

from bridge import ports
from bridge.broker.config import BrokerConfig
from bridge.broker.websocket import WebSocket
from bridge.broker.wire import Wire
from bridge.errors import StartError

_SETTINGS: Final = {
    "mqtt": "BRIDGE_MQTT__PORT",
    "mqtts": "BRIDGE_MQTT__TLS_PORT",
    "ws": "BRIDGE_MQTT__WEBSOCKET_PORT",
    "wss": "BRIDGE_MQTT__WEBSOCKET_TLS_PORT",
}


ACCEPTED_TOGETHER: Final = 8
"""Connections that one turn of the event loop takes from a port. libuv takes one from each listening socket, so a port
has so many, of one queue. With a single one, ten thousand devices that come back at once are ten thousand turns, each
with all that a turn costs; with more of them, a client that comes alone pays for more sockets that have nothing."""


class Peer(Protocol):
    """Whoever has connected."""

    @property
    def address(self) -> str:
        """Where from: an IP address."""


@final
class Listener:
    """Opens the ports of the configuration; every kind of socket ends in the same kind of connection."""

    def __init__(self, config: BrokerConfig, connection: Callable[[], Wire]) -> None:
        self._config = config
        self._connection = connection
        self._servers: list[asyncio.Server] = []
        self._by_address: Final[Counter[str]] = Counter()
        self.ports: Final[dict[str, int]] = {}
        """What is listened on, by `mqtt`, `mqtts`, `ws`, `wss`; with the port that the system has chosen for 0."""

    async def start(self) -> None:
        """Listen. Raises StartError that says which port is taken and by whom, or which file cannot be read."""
        config = self._config
        tls = _tls(config) if config.tls_port is not None or config.websocket_tls_port is not None else None
        await self._open("mqtt", config.port, self._connection, None)
        await self._open("mqtts", config.tls_port, self._connection, tls)
        await self._open("ws", config.websocket_port, self._websocket, None)
        await self._open("wss", config.websocket_tls_port, self._websocket, tls)

    async def _open(
        self, name: str, port: int | None, protocol: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None
    ) -> None:
        if port is None:
            return
        listening = ports.bind(self._config.host, port, _SETTINGS[name])
        self.ports[name] = listening.getsockname()[1]
        for sock in (listening, *(listening.dup() for _ in range(ACCEPTED_TOGETHER - 1))):
            server = await asyncio.get_running_loop().create_server(
                protocol,
                sock=sock,
                backlog=ports.BACKLOG,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else self._config.connect_timeout,
            )
            self._servers.append(server)

    def _websocket(self) -> asyncio.Protocol:
        config = self._config
        return WebSocket(self._connection(), config.max_packet_bytes + 5, config.websocket_origins)

    def arrived(self, peer: Peer, connections: int) -> str | None:
        """Count a connection; why it is too many, or None."""
        config = self._config
        limit = config.max_connections_per_address
        if limit:
            self._by_address[peer.address] += 1
        if connections > config.max_connections:
            return "too_many_connections"
        if limit and self._by_address[peer.address] > limit and not ports.is_loopback(peer.address):
            return "too_many_connections_from_address"
        return None

    def left(self, peer: Peer) -> None:
        """A connection that was counted is gone."""
        if self._config.max_connections_per_address:
            self._by_address[peer.address] -= 1
            if self._by_address[peer.address] <= 0:
                del self._by_address[peer.address]

    def close(self) -> None:
        """Accept nobody any more."""
        for server in self._servers:
            server.close()


def _tls(config: BrokerConfig) -> ssl.SSLContext:
    if config.tls_certificate is None or config.tls_key is None:
        raise StartError("a TLS port needs BRIDGE_MQTT__TLS_CERTIFICATE and BRIDGE_MQTT__TLS_KEY")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_certificate, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise StartError(f"certificate {config.tls_certificate} or key {config.tls_key}: {error}") from error
    return context
