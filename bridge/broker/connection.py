"""One client's network connection: bytes in, messages to the agents.

This is the hot path. A PUBLISH is taken apart in place, without a packet object or a task, and everything that is known
of its topic is found with one look into a dictionary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Final, Protocol, final

from bridge.broker import packets
from bridge.broker.framing import PacketTooLargeError, split
from bridge.broker.packets import ProtocolError
from bridge.broker.plugins import Plugins
from bridge.broker.portions import Portions
from bridge.broker.promises import Promises, PromisesBroker
from bridge.broker.routes import Route, route_to
from bridge.broker.session import Ack, Promise, Session
from bridge.broker.wheel import TICK, ticks
from bridge.broker.wire import CLOSED, CONGESTED, STALLED_FOR, WINDOW
from bridge.errors import RefusedError
from bridge.messages import Intake, Message, Sender
from bridge.receipts import Ledger, Outcome, Receipt
from bridge.topics import Topics

MAX_ROUTES: Final = 1_000
"""Topics whose meaning one connection remembers; at the limit it forgets them all and starts again."""
MAX_DEVICES: Final = 10_000
"""Devices that one connection (a gateway) may speak for."""
MAX_CONNECT_BYTES: Final = 32_768
"""The largest CONNECT: what strangers may make the broker remember."""
CLOSING_FOR: Final = 5.0
"""Seconds that a closed connection may take to send its last bytes."""
LOOK_EVERY: Final = 60.0
"""Seconds between two looks at a connection without keepalive."""

_ORDINARY: Final = 0x32
"""The first byte of a PUBLISH of QoS 1, not to be retained, sent for the first time (3.3.1)."""
_BAD_PUBLISH: Final = frozenset((0x36, 0x37, 0x3E, 0x3F, 0x38, 0x39))
"""QoS 3 [MQTT-3.3.1-4], or DUP with QoS 0 [MQTT-3.3.1-2]."""

_TOLD: Final = frozenset(
    ("bad_topic", "disconnected", "not_authorised", "not_stored", "packet_too_large", "protocol_error",
     "slow_consumer", "too_many_levels"),
)  # fmt: skip
"""Causes that the agents know as `error`."""


class ConnectionBroker(PromisesBroker, Protocol):
    """What a connection needs of the broker."""

    topics: Topics
    ledger: Ledger
    intake: Intake
    portions: Portions
    plugins: Plugins | None
    control: Callable[[Connection, int, bytes], None]
    """Handles every packet but PUBLISH: its first byte, and its body. Raises ProtocolError."""

    def connected(self, connection: Connection) -> None:
        """A socket is open."""

    def disconnected(self, connection: Connection) -> None:
        """A socket is closed."""

    def closing(self, connection: Connection, cause: str, detail: str) -> None:
        """A connection is about to end."""

    def closed(self, connection: Connection, will: packets.Will | None) -> None:
        """A connection has given back what it held; `will` is to be published."""

    def wait_for_relief(self, connection: Connection) -> None:
        """Have a connection read on when the intake is no longer congested."""


@final
class Connection(Promises):
    """Also the `Link` that the agents see.

    While the intake is congested, packets are taken no longer than until the end of what has just arrived.
    """

    __slots__ = (
        "_address", "_answer", "_devices", "_patience", "_route", "_routes", "_will", "client_id", "due", "limit",
    )  # fmt: skip

    _broker: ConnectionBroker

    def __init__(self, broker: ConnectionBroker) -> None:
        super().__init__(broker)
        self._address: str | None = None
        self._route: Route | None = None
        """Where its last message went: for a device with one topic, where all go."""
        self._routes: dict[bytes, Route] | None = None
        """By topic, if there are several."""
        self._devices: tuple[str, ...] | set[str] = ()
        """For whom it speaks: nearly always one device, for which no set is needed."""
        self._will: packets.Will | None = None
        self._patience = 0
        """Ticks of silence that are too many; 0 for none."""
        self.limit = min(MAX_CONNECT_BYTES, broker.config.max_packet_bytes)
        self.client_id = ""
        self.due = 0
        """The tick in which it is looked at; 0 when it is not in the wheel."""
        self._answer: tuple[str, bool] | None = None
        """What plugins have said about a topic that this client wants to publish to."""

    # ------------------------------------------------------------------ the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected: it has `connect_timeout` seconds to say who it is."""
        super().connection_made(transport)
        self._look_in(self._broker.config.connect_timeout)
        self._broker.connected(self)

    @property
    def address(self) -> str:
        """Where the client is, or nothing if the socket is gone. The system is asked when somebody wants to know: a
        tenth of what a connection costs, and most of the time nobody does."""
        if self._address is None:
            peer = None if self._transport is None else self._transport.get_extra_info("peername")
            self._address = peer[0] if isinstance(peer, tuple) else ""
        return self._address

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is gone."""
        self._broker.portions.do(partial(self._gone, error))

    def _gone(self, error: Exception | None) -> None:
        self.close("disconnected", str(error or "without a DISCONNECT"))
        self._broker.disconnected(self)

    # ------------------------------------------------------------------ packets in

    def _take(self, data: bytes) -> None:
        """Handle the whole packets in `data` and keep the beginning of the next one."""
        broker = self._broker
        now = broker.clock()
        at = need = 0
        try:
            while not need:
                limit = self.limit
                frames, need, error = split(data, limit, at)
                position = 0
                while position < len(frames):
                    taken = self._publish_alike(data, frames, position, now)
                    if not taken:
                        taken = 1
                        first, start, stop = frames[position]
                        if first & 0xF0 == 0x30 and self.session is not None:
                            if not self._publish(data, first, start, stop, now):
                                break  # not before a plugin has answered
                        else:
                            broker.control(self, first, data[start:stop])
                    position += taken
                    at = frames[position - 1][2]
                    if self._held:
                        break
                else:
                    if self.limit != limit:
                        need = 0  # the client was let in, and may send more now
                    elif error is not None:
                        raise error
                    continue
                break
        except PacketTooLargeError as too_large:
            self.close("packet_too_large", str(too_large))
        except ProtocolError as broken:
            self.close("protocol_error", str(broken))
        if self._held & CLOSED:
            return
        if at < len(data):
            self._rest = bytearray(data[at:])
            self._need = 0 if self._held else need
        if broker.intake.congested:
            self.hold(CONGESTED)
            broker.wait_for_relief(self)

    def _publish_alike(self, data: bytes, frames: list[tuple[int, int, int]], position: int, now: float) -> int:
        """Handle the PUBLISHes from `position` on that are like those of nearly all devices: of QoS 1, on the topic of
        the last message, which is an agent's. How many they are. The same as `_publish` for each, with what is alike
        done once."""
        route = self._route
        if route is None or route.address is None or frames[position][0] != _ORDINARY:
            return 0
        address, head = route.address, route.head
        length = len(head) + 2
        broker = self._broker
        ledger, share, pending = broker.ledger, broker.share, self._pending
        if not pending:
            share.enter()
        # At least one, as others that have come since may have made the share smaller than what is under way.
        room = max(1, share.window - len(pending))
        receipts: list[Promise] = []
        messages: list[Message] = []
        for first, start, stop in islice(frames, position, position + room):
            body = start + length
            if first != _ORDINARY or body > stop or not data.startswith(head, start):
                break
            packet_id = data[body - 2] << 8 | data[body - 1]
            if not packet_id:
                break
            receipt = Receipt(ledger, self, 1, packet_id)
            receipts.append(receipt)
            messages.append(Message(address, data[body:stop], now, receipt))
        taken = len(messages)
        pending += receipts
        if not pending:
            share.leave()
        if not taken:
            return 0
        if taken >= room:
            self.hold(WINDOW)
        ledger.open(taken)
        exchange = broker.exchange
        if exchange.heard(route):
            for message in messages:
                exchange.forward(route.topic, message.payload, 1, route.wild)
        broker.intake.deliver(messages)
        return taken

    def _publish(self, data: bytes, first: int, start: int, stop: int, now: float) -> bool:
        """Handle a PUBLISH (3.3); False if it has to come again when plugins have been asked."""
        begin = start + 2
        if begin > stop:
            raise ProtocolError("PUBLISH without a topic (3.3.2.1)")
        end = begin + (data[start] << 8 | data[start + 1])
        qos = first >> 1 & 3
        body = end + 2 if qos else end
        if body > stop or first in _BAD_PUBLISH:
            raise ProtocolError("PUBLISH too short, of QoS 3 [MQTT-3.3.1-4], or DUP with QoS 0 [MQTT-3.3.1-2]")
        head = data[start:end]
        route = self._route
        if route is None or route.head != head:
            route = self._find(head)
            if route is None:
                return bool(self._held & CLOSED)
        packet_id = 0
        if qos:
            packet_id = data[end] << 8 | data[end + 1]
            if not packet_id:
                raise ProtocolError("packet identifier 0 [MQTT-2.3.1-1]")
            if qos == 2 and self._is_repeated(packet_id):
                return True
        broker = self._broker
        address = route.address
        if address is None:
            self._pass_on(route, data[body:stop], qos, packet_id, bool(first & 1))
            return True
        if qos == 0:
            receipt = broker.ledger.receipt()
        else:
            receipt = broker.ledger.receipt(self, qos, packet_id, self._once(packet_id) if qos == 2 else None)
            self._line_up(receipt)
        payload = data[body:stop]
        exchange = broker.exchange
        if first & 1:
            exchange.retain(route.topic, payload, qos)
        if exchange.heard(route):
            exchange.forward(route.topic, payload, qos, route.wild)
        broker.intake.deliver([Message(address, payload, now, receipt)])
        return True

    def _pass_on(self, route: Route, payload: bytes, qos: int, packet_id: int, retain: bool) -> None:
        """Handle a message that is for no agent: refused, or on an ordinary topic."""
        broker = self._broker
        once = self._once(packet_id) if qos == 2 else None
        if route.refusal is not None:
            receipt = broker.ledger.receipt(self if qos else None, qos, packet_id, once)
            self._line_up(receipt)
            broker.intake.refuse(route.topic, payload, route.refusal.reason, str(route.refusal), receipt)
            return
        broker.stats.messages_received += 1
        stored = broker.exchange.pass_on(route.topic, payload, qos, retain, once)
        if broker.plugins is not None:
            broker.plugins.received(self.client_id, route.topic, payload, qos, retain)
        if qos == 1 and stored is None and not self._pending:
            self.send(packets.puback(packet_id))
        elif qos:
            ack = Ack(qos, packet_id)
            self._line_up(ack)
            if stored is None:
                self.kept(ack, Outcome.COMMITTED)
            else:
                stored.add_done_callback(partial(self._stored, ack))

    def _once(self, packet_id: int) -> tuple[str, int] | None:
        session = self._session()
        return None if session.clean else (session.client_id, packet_id)

    def _find(self, head: bytes) -> Route | None:
        """What another topic than the last message's means to this client, remembered for its next message. None if it
        may not publish there (the connection is closed), or if plugins have to be asked first."""
        routes = self._routes
        route = None if routes is None else routes.get(head)
        if route is None:
            route = self._learn(head[2:])
            if route is None:
                return None
            if self._route is not None:
                if routes is None:
                    routes = self._routes = {self._route.head: self._route}
                elif len(routes) >= MAX_ROUTES:
                    routes.clear()
                routes[head] = route
        self._route = route
        return route

    def _learn(self, name: bytes) -> Route | None:
        """The same for a topic that is new to this connection."""
        topic = packets.utf8(name)
        packets.check_topic_name(topic)
        broker = self._broker
        if topic.startswith("$"):
            self.close("not_authorised", f"{topic[:200]!r}: clients do not publish below $ (4.7.2)")
            return None
        rights = self._session().rights
        allowed = rights is not None and rights.may_publish(topic)
        if rights is not None and rights.asks and broker.plugins is not None:
            if self._answer is None or self._answer[0] != topic:
                broker.plugins.ask_publish(self, self._session(), topic, partial(self._answered, topic))
                return None
            allowed, self._answer = self._answer[1], None
        if not allowed:
            self.close("not_authorised", f"may not publish to {topic[:200]!r}")
            return None
        try:
            route = route_to(topic, broker.topics, broker.config.max_topic_levels)
        except RefusedError as error:
            self.close("too_many_levels", str(error))
            return None
        if route.address is not None and route.address.from_device:
            rule = route.address.rule
            self.speak_for(route.address.device_id, listening=rule is not None and rule.listens)
        elif route.address is not None:
            route.address.sender = Sender(self._session().username, self.client_id, self.address)
        return route

    def _answered(self, topic: str, allowed: bool) -> None:
        self._answer = topic, allowed

    def speak_for(self, device_id: str, *, listening: bool) -> None:
        """Bind this connection to a device: the device is there while the connection is."""
        devices = self._devices
        if device_id not in devices:
            if len(devices) >= MAX_DEVICES:
                return
            if isinstance(devices, set):
                devices.add(device_id)
            else:
                self._devices = {*devices, device_id} if devices else (device_id,)
        elif not listening:
            return
        self._broker.intake.attached(device_id, self, listening=listening)

    # ------------------------------------------------------------------ coming and going

    def accept(self, session: Session, connect: packets.Connect, *, resumed: bool) -> None:
        """The client is let in: answer, and send again what was in flight, in order [MQTT-4.4.0-1], [MQTT-4.6.0-1]."""
        self.session = session
        self.client_id = session.client_id
        self.limit = self._broker.config.max_packet_bytes
        self._will = connect.will
        # One and a half times what the client has promised [MQTT-3.1.2-24].
        self._patience = ticks(connect.keepalive * 1.5) if connect.keepalive else 0
        self._look_in(connect.keepalive * 1.5 or LOOK_EVERY)
        self.send(packets.connack(packets.ACCEPTED, session_present=resumed))
        if resumed:
            self.resend()

    def refuse(self, code: int, cause: str, detail: str) -> None:
        """Answer CONNECT with a refusal, then close [MQTT-3.2.2-5]."""
        self.send(packets.connack(code))
        self.close(cause, detail)

    def look(self) -> None:
        """It is this connection's tick in the wheel: has it been silent, or not reading, for too long?"""
        tick = self._broker.wheel.tick
        if self.closed_by is not None:
            if self._transport is not None:
                self._transport.abort()
            return
        if self._choked_at and (tick - self._choked_at) * TICK >= STALLED_FOR:
            self.close("slow_consumer", f"has read nothing for {STALLED_FOR:g} s", at_once=True)
        elif self.session is None:
            # Counted from the beginning: a stranger that sends a byte now and then gets no more time.
            self.close("connect_timeout", "no CONNECT in time", at_once=True)
        elif self._patience and not self._held and tick - self._heard >= self._patience:
            self.close("keepalive", "not heard for one and a half times its keepalive", at_once=True)
        else:
            heard = tick if self._held else self._heard
            self._broker.wheel.put(self, heard + (self._patience or ticks(LOOK_EVERY)))

    def _look_in(self, seconds: float) -> None:
        self._broker.wheel.put(self, self._broker.wheel.tick + ticks(seconds))

    def without_will(self) -> None:
        """A DISCONNECT discards the will [MQTT-3.14.4-3]."""
        self._will = None

    def kick(self, cause: str) -> None:
        """Close the connection on somebody's order."""
        self.close(cause)

    def close(self, cause: str, detail: str = "", at_once: bool = False) -> None:
        """The one way out: everything that the connection holds is given back, whatever the cause. `at_once`: without
        waiting for the client to read what has been written."""
        if self.closed_by is not None:
            return
        self._give_up()
        self._write()
        self._broker.closing(self, cause, detail)
        self.closed_by = cause
        self._held |= CLOSED
        if self._transport is not None:
            self._look_in(CLOSING_FOR)
            if at_once:
                self._transport.abort()
            else:
                self._hang_up(linger=self.session is None or cause in ("shutdown", "not_stored"))
        told = "error" if cause in _TOLD else cause
        if cause == "disconnected" and self._will is not None:
            told = "will"
        for device_id in self._devices:
            self._broker.intake.detached(device_id, self, told)
        self._devices = ()
        self._rest = None
        self._route = self._routes = None
        will, self._will = self._will, None
        self._broker.closed(self, None if cause == "shutdown" else will)
        self._tell_settled()
