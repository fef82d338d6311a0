"""MQTT over WebSocket (MQTT 3.1.1, 6): what is in the frames takes the same way as bytes from TCP."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast, final

from websockets.exceptions import NegotiationError
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Origin, Subprotocol

from bridge.broker.wire import Wire

MQTT = Subprotocol("mqtt")


@final
class WebSocket(asyncio.Protocol, asyncio.Transport):
    """Towards the socket a protocol, towards the connection its transport. The connection is there from the first byte
    on, so that its time to say who it is runs during the handshake, too."""

    def __init__(self, connection: Wire, max_frame: int, origins: Sequence[str]) -> None:
        """`max_frame`: bytes. `origins`: the web pages that may connect, for example `http://127.0.0.1:8080`; clients
        that are no browsers name none, and may."""
        super().__init__()
        self._connection = connection
        self._transport: asyncio.Transport
        self._protocol = ServerProtocol(
            origins=[None, *(Origin(origin) for origin in origins)],
            subprotocols=[MQTT],
            select_subprotocol=_select,
            max_size=max_frame,
        )

    # ------------------------------------------------------------------ from the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        self._transport = cast("asyncio.Transport", transport)
        self._connection.connection_made(self)

    def data_received(self, data: bytes) -> None:
        """Unwrap what has come."""
        self._protocol.receive_data(data)
        self._advance()

    def eof_received(self) -> None:
        """The client sends nothing more."""
        self._protocol.receive_eof()
        self._advance()

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is gone."""
        self._connection.connection_lost(error)

    def pause_writing(self) -> None:
        """The client does not read."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._connection.resume_writing()

    def _advance(self) -> None:
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._protocol.send_response(self._protocol.accept(event))
            elif isinstance(event, Frame):
                if event.opcode is Opcode.TEXT:
                    self._protocol.fail(CloseCode.UNSUPPORTED_DATA, "MQTT is binary [MQTT-6.0.0-1]")
                    self._connection.close("protocol_error", "a text frame [MQTT-6.0.0-1]")
                elif event.opcode in (Opcode.BINARY, Opcode.CONT) and event.data:
                    self._connection.data_received(bytes(event.data))
        self._flush()
        if self._protocol.close_expected() and not self._transport.is_closing():
            self._transport.close()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data and not self._transport.is_closing():
                self._transport.write(data)

    # ------------------------------------------------------------------ from the connection

    def write(self, data: Any) -> None:
        """Wrap and write."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_binary(data)
            self._flush()

    def close(self) -> None:
        """Say goodbye, then close."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
            self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Drop the socket."""
        self._transport.abort()

    def can_write_eof(self) -> bool:
        """Half of a WebSocket cannot be closed."""
        return False

    def is_closing(self) -> bool:
        """Whether nothing more is read or written."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Read no more for now."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._transport.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """When the client counts as one that does not read."""
        self._transport.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the socket knows."""
        return self._transport.get_extra_info(name, default)


def _select(protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol:
    if MQTT not in offered:
        raise NegotiationError("ask for the subprotocol mqtt [MQTT-6.0.0-3]")
    return MQTT  # [MQTT-6.0.0-4]
