"""A simulated device's connection: an asyncio protocol and nothing else, so that ten thousand fit into one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, cast, final

from bridge.errors import BridgeError
from bridge.simulate import wire
from bridge.simulate.client import Target

KEEPALIVE: Final = 60
"""Seconds. After half of it in silence the device pings, and after another half without a sign the line is dead."""
CONNECT_WITHIN: Final = 30.0
"""Seconds: a broker to which ten thousand come at once takes its time."""

Take = Callable[[str, bytes], None]


class LineError(BridgeError):
    """A connection could not be made, or has broken. Its text says why."""


@final
class Line(asyncio.Protocol):
    """One connection. Messages from the broker go to `take(topic, payload)`; what is waited for fails with LineError
    when the connection breaks."""

    __slots__ = (
        "_answer", "_heard", "_in_flight", "_last_id", "_lost", "_rest", "_take", "_timer", "_transport",
    )  # fmt: skip

    def __init__(self, take: Take) -> None:
        self._take = take
        loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[None] = loop.create_future()
        self._answer: asyncio.Future[None] | None = None
        """Of CONNECT or SUBSCRIBE: there is one at a time."""
        self._in_flight: dict[int, asyncio.Future[None] | None] = {}
        """By packet identifier: who waits for the acknowledgement, if anybody does."""
        self._last_id = 0
        self._rest = b""
        self._heard = True
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    # ------------------------------------------------------------------ the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        self._transport = cast("asyncio.Transport", transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Handle the whole packets."""
        self._heard = True
        try:
            packets, self._rest = wire.split(self._rest + data if self._rest else data)
            for first, body in packets:
                self._handle(first, body)
        except (wire.WireError, UnicodeDecodeError) as error:
            self._break(str(error))

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is gone."""
        self._break(str(error) if error is not None else "the broker has closed the connection")

    def _handle(self, first: int, body: bytes) -> None:
        kind = first >> 4
        match kind:
            case wire.PUBLISH:
                topic, payload, packet_id = wire.received(first, body)
                self._take(topic, payload)
                if packet_id:
                    self._transport.write(wire.puback(packet_id))
            case wire.PUBREC:
                self._transport.write(wire.pubrel(int.from_bytes(body, "big")))
            case wire.PUBACK | wire.PUBCOMP:
                waiter = self._in_flight.pop(int.from_bytes(body, "big"), None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(None)
            case wire.CONNACK | wire.SUBACK:
                wire.check_granted(kind, body)
                if self._answer is not None and not self._answer.done():
                    self._answer.set_result(None)
            case _:
                pass  # a PINGRESP: that something has come is all there is to know

    def _watch(self) -> None:
        if not self._heard:
            self._break("the broker is silent")
            return
        self._heard = False
        if self._answer is not None:
            self._transport.write(wire.PINGREQ_PACKET)
        self._timer = asyncio.get_running_loop().call_later(KEEPALIVE / 2, self._watch)

    def _break(self, why: str) -> None:
        if not self._lost.done():
            self._give_up(why)
            self._transport.abort()

    def _give_up(self, why: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._lost.set_exception(LineError(why))
        self._lost.exception()  # nobody need be waiting for it
        for waiter in (self._answer, *self._in_flight.values()):
            if waiter is not None and not waiter.done():
                waiter.set_exception(LineError(why))
        self._in_flight.clear()

    # ------------------------------------------------------------------ the device's calls

    async def lost(self) -> None:
        """Raises LineError when the connection has broken."""
        await asyncio.shield(self._lost)

    async def connect(self, target: Target, client_id: str) -> None:
        """Say who one is."""
        await self._ask(wire.connect(client_id, KEEPALIVE, target.username, target.password))

    async def subscribe(self, filters: list[str]) -> None:
        """Subscribe at QoS 1."""
        await self._ask(wire.subscribe(self._next_id(), filters))

    async def _ask(self, packet: bytes) -> None:
        self._check()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(packet)
        await self._answer

    async def publish(self, topic: str, payload: bytes, qos: int) -> None:
        """Publish, and at QoS 1 and 2 wait until the broker has the message."""
        self._check()
        if not qos:
            self._transport.write(wire.publish(topic, payload, 0, 0))
            return
        packet_id = self._next_id()
        waiter = self._in_flight[packet_id] = asyncio.get_running_loop().create_future()
        self._transport.write(wire.publish(topic, payload, qos, packet_id))
        await waiter

    def post(self, topic: str, payload: bytes, qos: int) -> None:
        """Publish without waiting, at QoS 0 or 1; nothing happens on a broken connection."""
        if self._lost.done():
            return
        packet_id = self._next_id() if qos else 0
        if qos:
            self._in_flight[packet_id] = None
        self._transport.write(wire.publish(topic, payload, qos, packet_id))

    def leave(self) -> None:
        """Say goodbye and close."""
        if not self._lost.done():
            self._transport.write(wire.DISCONNECT_PACKET)
            self._transport.close()  # when that is written
            self._give_up("closed")

    def _check(self) -> None:
        if self._lost.done():
            self._lost.result()

    def _next_id(self) -> int:
        while True:
            self._last_id = self._last_id % 65_535 + 1
            if self._last_id not in self._in_flight:
                return self._last_id


@asynccontextmanager
async def connected(target: Target, client_id: str, take: Take, gate: asyncio.Semaphore) -> AsyncIterator[Line]:
    """A line to the broker on which the client is let in; at the end it says goodbye. `gate` limits how many connect at
    once. Raises LineError."""
    loop = asyncio.get_running_loop()
    line: Line | None = None
    try:
        async with gate:
            try:
                async with asyncio.timeout(CONNECT_WITHIN):
                    _, line = await loop.create_connection(lambda: Line(take), target.host, target.port)
                    await line.connect(target, client_id)
            except TimeoutError:
                raise LineError("the broker does not answer") from None
            except OSError as error:
                raise LineError(error.strerror or str(error)) from error
        yield line
    finally:
        if line is not None:
            line.leave()
