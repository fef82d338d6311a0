"""A socket as a connection uses it: when it is read, and when what has been gathered for it is written."""

from __future__ import annotations

import abc
import asyncio
from typing import Final, Protocol, cast

from bridge.broker.config import BrokerStats
from bridge.broker.wheel import Wheel

WRITE_BUFFER: Final = 262_144
"""Bytes that may wait for a client's socket; then the client counts as one that does not read."""
STALLED_FOR: Final = 30.0
"""Seconds after which a client that does not read is closed."""

# Why a connection's packets are not taken at the moment; all must be gone before they are again.
WINDOW: Final = 1
CONGESTED: Final = 2
ASKING: Final = 4
CHOKED: Final = 8
STOPPED: Final = 16
CLOSED: Final = 32
ARRIVING: Final = 64


class WireBroker(Protocol):
    """What a wire needs of the broker."""

    stats: BrokerStats
    wheel: Wheel

    def flush_soon(self, wire: Wire) -> None:
        """Write a wire's output at the end of this turn of the loop, together with everybody's."""


class Wire(asyncio.Protocol):
    """What has come and may not be taken yet is kept, and the socket is not read meanwhile. What is sent is written at
    the end of a turn of the event loop, all at once."""

    __slots__ = (
        "_broker", "_choked_at", "_flushing", "_heard", "_held", "_need", "_out", "_out_bytes", "_rest", "_transport",
        "closed_by",
    )  # fmt: skip

    def __init__(self, broker: WireBroker) -> None:
        self._broker = broker
        self._transport: asyncio.Transport | None = None
        self._held = 0
        self._rest: bytearray | None = None
        self._need = 0
        """So many bytes `_rest` must have before it is worth to look at it."""
        self._heard = 0
        """The tick in which the client was last heard."""
        self._choked_at = 0
        """The tick since which the client has not been reading; 0 while it does."""
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flushing = False
        self.closed_by: str | None = None
        """Why it is closed; None while it is open."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        # A stream transport, though uvloop's is no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(WRITE_BUFFER)

    def data_received(self, data: bytes) -> None:
        """Take what has come, unless it has to wait."""
        self._broker.stats.bytes_received += len(data)
        self._heard = self._broker.wheel.tick
        rest = self._rest
        if rest is not None:
            rest += data
            if self._held or len(rest) < self._need:
                return
            self._rest = None
            data = bytes(rest)
        elif self._held:
            if not self._held & CLOSED:
                self._rest = bytearray(data)
            return
        self._take(data)

    def pause_writing(self) -> None:
        """The client does not read as fast as we write: take nothing from it that would have to be answered."""
        self._choked_at = self._broker.wheel.tick
        self._look_in(STALLED_FOR)
        self.hold(CHOKED)

    def resume_writing(self) -> None:
        """It has caught up."""
        self._choked_at = 0
        self.drain()
        self.let_go(CHOKED)

    @property
    def choked(self) -> bool:
        """Whether the client does not read."""
        return self._choked_at > 0

    @property
    def held(self) -> bool:
        """Whether its packets are not taken at the moment."""
        return self._held > 0

    def hold(self, why: int) -> None:
        """Take no more packets, and read no more, until this reason and all others are gone."""
        if not self._held and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._held |= why

    def let_go(self, why: int) -> None:
        """A reason to wait is gone; if it was the last one, go on with what has come meanwhile."""
        if not self._held & why:
            return
        self._held &= ~why
        if self._held:
            return
        self._heard = self._broker.wheel.tick  # it could not be heard until now
        rest, self._rest = self._rest, None
        if rest:
            self._take(bytes(rest))
        if not self._held and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def send(self, packet: bytes) -> None:
        """Write a packet at the end of this turn of the loop, together with the others."""
        if self.closed_by is not None:
            return
        self._out.append(packet)
        self._out_bytes += len(packet)
        if not self._flushing:
            self.flush_later()
        elif self._out_bytes > WRITE_BUFFER:
            self._write()

    def flush_later(self) -> None:
        """Have `flush` called at the end of this turn of the loop."""
        if not self._flushing and self.closed_by is None:
            self._flushing = True
            self._broker.flush_soon(self)

    @abc.abstractmethod
    def flush(self) -> None:
        """Write what this turn of the loop has gathered."""

    @abc.abstractmethod
    def drain(self) -> None:
        """There is room for more to be sent."""

    def _hang_up(self, *, linger: bool) -> None:
        """Close the socket when everything is written. `linger`: not before the client has, if it does so in time. To
        close a socket on which unread data waits resets it, and what the client has not read yet is lost to it."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if not (linger and transport.can_write_eof()):
            transport.close()
            return
        try:
            transport.write_eof()
            transport.resume_reading()  # what comes is dropped
        except OSError:
            transport.abort()  # the client has cut the line

    def abort(self) -> None:
        """Drop the socket without waiting for the client to read what is left."""
        if self._transport is not None:
            self._transport.abort()

    @abc.abstractmethod
    def close(self, cause: str, detail: str = "", at_once: bool = False) -> None:
        """End it. `at_once`: without waiting for the client to read what has been written."""

    @abc.abstractmethod
    def _take(self, data: bytes) -> None:
        """Handle the whole packets in `data`."""

    @abc.abstractmethod
    def _look_in(self, seconds: float) -> None:
        """Have the connection looked at in so many seconds."""

    def _write(self) -> None:
        out = self._out
        if out and self._transport is not None and not self._transport.is_closing():
            self._broker.stats.bytes_sent += self._out_bytes
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        self._out = []
        self._out_bytes = 0
