"""One client's network connection: bytes in, messages to the agents; receipts settled, acknowledgements out.

This is the hot path. A PUBLISH is taken apart in place, without a packet object or a task, and everything that is known
of its topic is found with one look into a dictionary.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, cast, final

from bridge.broker import packets
from bridge.broker.access import Rights
from bridge.broker.packets import ProtocolError
from bridge.broker.sender import Sender
from bridge.broker.session import Session
from bridge.errors import RefusedError
from bridge.messages import Address, Message
from bridge.receipts import Outcome, Receipt

if TYPE_CHECKING:
    from bridge.broker.broker import EmbeddedBroker

MAX_ROUTES: Final = 256
"""Topics whose meaning one connection remembers; at the limit it forgets them all and starts again."""
MAX_DEVICES: Final = 10_000
"""Devices that one connection (a gateway) may speak for."""
LINGER: Final = 5.0
"""Seconds that a closed connection has to write what is left."""

_BAD_PUBLISH: Final = frozenset((0x36, 0x37, 0x3E, 0x3F, 0x38, 0x39))
"""First bytes of a PUBLISH with QoS 3 [MQTT-3.3.1-4], or with DUP at QoS 0 [MQTT-3.3.1-2]."""


@final
class Route:
    """What a connection knows of a topic that it has published to."""

    __slots__ = ("address", "refusal", "subscribers", "topic", "version")

    def __init__(self, topic: str, address: Address | None, refusal: RefusedError | None) -> None:
        self.topic = topic
        self.address = address
        self.refusal = refusal
        self.subscribers: dict[Session, int] = {}
        self.version = -1


@final
class Connection(Sender):
    """Also the `Link` that the agents see.

    Reading stops while more than `receive_window` of its messages are unsettled, or after a delivery while the intake
    is congested; it goes on at half of the window, so that a connection does not stop and go with every message.
    """

    __slots__ = (
        "_devices", "_heard_at", "_keepalive", "_paused", "_pending", "_rest", "_rights", "_routes", "_stopped",
        "_waits", "_will", "_window", "client_id",
    )  # fmt: skip

    def __init__(self, broker: EmbeddedBroker) -> None:
        super().__init__(broker)
        self._rights: Rights | None = None
        self._will: packets.Will | None = None
        self._rest = b""
        self._routes: dict[bytes, Route] = {}
        self._devices: set[str] | None = None
        self._pending: deque[Receipt] | None = None
        self._window = broker.config.receive_window
        self._paused = False
        self._stopped = False
        self._waits = False
        """Whether what comes next must wait, unread and unparsed, until it is known who the client is."""
        self._heard_at = 0.0
        self._keepalive = 0.0
        self.client_id = ""

    # ------------------------------------------------------------------ the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected: it has `connect_timeout` seconds to say who it is."""
        # A stream transport, though uvloop's is no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._heard_at = self._broker.monotonic()
        self._broker.connected(self)

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        if self.closed_by is not None:
            return
        self._heard_at = self._broker.monotonic()
        self._rest = self._rest + data if self._rest else data
        if not self._waits:
            self.process()

    def process(self) -> None:
        """Handle the whole packets in what has come, and keep the beginning of the next one."""
        try:
            taken = self._parse(self._rest)
        except ProtocolError as error:
            self.close("protocol_error", str(error))
            return
        if self.closed_by is not None:
            return
        self._rest = self._rest[taken:]
        pending = self._pending
        broker = self._broker
        if self._waits or (pending and len(pending) > self._window):
            self._pause()
        elif broker.intake.congested or broker.keeper.congested:
            self._pause()
            broker.wait_for_relief(self)

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is gone."""
        self.close("disconnected" if error is None else "error", "" if error is None else str(error))
        self._broker.disconnected(self)

    # ------------------------------------------------------------------ packets in

    def _parse(self, data: bytes) -> int:
        """Handle every whole packet in `data`; returns how many bytes that were. (MQTT 3.1.1, 2.2)"""
        at = 0
        end = len(data)
        now = self._broker.clock()
        limit = self._broker.config.max_packet_bytes
        while end - at >= 2 and self.closed_by is None:
            first = data[at]
            length = data[at + 1]
            body = at + 2
            if length & 0x80:
                length &= 0x7F
                shift = 7
                while True:
                    if body >= end:
                        return at
                    digit = data[body]
                    body += 1
                    length |= (digit & 0x7F) << shift
                    shift += 7
                    if not digit & 0x80:
                        break
                    if shift > 21:
                        raise ProtocolError("the remaining length has more than four bytes (2.2.3)")
            if length > limit:
                self.close("packet_too_large", f"a packet of {length} bytes; max_packet_bytes is {limit}")
                return end
            stop = body + length
            if stop > end:
                break
            session = self._session
            if session is None:
                self._take_connect(first, data[body:stop])
                if self._waits:
                    return stop
            elif first & 0xF0 == 0x30:
                self._take_publish(session, data, first, body, stop, now)
            else:
                self._take_other(session, first, data[body:stop])
            at = stop
        return at

    def _take_publish(self, session: Session, data: bytes, first: int, body: int, stop: int, now: float) -> None:
        qos = first >> 1 & 3
        start = body + 2
        topic_end = start + (data[body] << 8 | data[body + 1]) if start <= stop else stop + 1
        payload_start = topic_end + 2 if qos else topic_end
        if payload_start > stop or first in _BAD_PUBLISH:
            raise ProtocolError("PUBLISH is too short, or has QoS 3 or DUP at QoS 0 [MQTT-3.3.1-2], [MQTT-3.3.1-4]")
        name = data[start:topic_end]
        route = self._routes.get(name)
        if route is None:
            route = self._learn(name)
            if route is None:
                return
        payload = data[payload_start:stop]
        packet_id = 0
        once = None
        broker = self._broker
        if qos:
            packet_id = data[topic_end] << 8 | data[topic_end + 1]
            if packet_id == 0:
                raise ProtocolError("packet identifier is 0 [MQTT-2.3.1-1]")
            if qos == 2:
                if packet_id in session.unreleased and self._taken_over(session, packet_id):
                    return
                if not session.clean:
                    once = (session.client_id, packet_id)
        address = route.address
        ordinary = address is None and route.refusal is None
        receipt = Receipt(broker.passed if ordinary else broker.ledger, self if qos else None, qos, packet_id, once)
        if qos:
            if self._pending is None:
                self._pending = deque()
            self._pending.append(receipt)
            if qos == 2:
                session.unreleased[packet_id] = receipt
        # What is to be kept of it goes to the store before its receipt can be settled.
        changes = broker.keeper.changes if ordinary else 0
        if first & 1:
            broker.retain(route.topic, payload, qos)
        if route.version != broker.tree.version:
            route.subscribers = broker.tree.match(route.topic)
            route.version = broker.tree.version
        if route.subscribers:
            broker.forward(route.subscribers, name, payload, qos)
        if address is not None:
            broker.intake.deliver(Message(address, payload, now, receipt))
        elif route.refusal is not None:
            broker.intake.refuse(route.topic, payload, route.refusal.reason, str(route.refusal), receipt)
        else:
            broker.settle_passed(receipt, changes)

    def _taken_over(self, session: Session, packet_id: int) -> bool:
        """Whether a QoS 2 message need only be acknowledged: it came before [MQTT-4.3.3-2]."""
        known = session.unreleased[packet_id]
        if known is not None and known.outcome is Outcome.RETRY:
            return False
        if known is None or known.outcome is not None:
            # Its PUBREC takes its turn among the others [MQTT-4.6.0-3].
            again = Receipt(self._broker.passed, self, 2, packet_id)
            if self._pending is None:
                self._pending = deque()
            self._pending.append(again)
            again.settle(Outcome.DEDUPLICATED)
        elif known.owner is not self:
            # Not stored yet, and the connection on which it came is gone: the PUBREC goes out on this one.
            known.owner = self
            if self._pending is None:
                self._pending = deque()
            self._pending.append(known)
        return True

    def _learn(self, name: bytes) -> Route | None:
        """What a topic means to this client, remembered for the next message; None if it may not publish there."""
        topic = packets.utf8(name)
        packets.check_topic_name(topic)
        if topic.startswith("$"):
            raise ProtocolError("clients may not publish to topics that begin with $ (4.7.2)")
        broker = self._broker
        if self._rights is None or not self._rights.may_publish(topic):
            self.close("not_authorised", f"may not publish to {topic[:200]!r}")
            return None
        address = refusal = None
        levels = topic.count("/") + 1
        if levels > broker.config.max_topic_levels:
            refusal = RefusedError(
                "too_many_levels",
                f"the topic has {levels} levels; max_topic_levels is {broker.config.max_topic_levels}",
            )
            if not broker.topics.below_root(topic):
                self.close("too_many_levels", str(refusal))
                return None
        else:
            try:
                address = broker.topics.parse(topic)
            except RefusedError as error:
                refusal = error
        if address is not None and address.kind.from_device:
            self.speak_for(address.device_id, listening=False)
        if len(self._routes) >= MAX_ROUTES:
            self._routes.clear()
        route = self._routes[name] = Route(topic, address, refusal)
        return route

    def speak_for(self, device_id: str, *, listening: bool) -> None:
        """Bind this connection to a device: the device is there while the connection is."""
        if self._devices is None:
            self._devices = set()
        if device_id not in self._devices:
            if len(self._devices) >= MAX_DEVICES:
                return
            self._devices.add(device_id)
        elif not listening:
            return
        self._broker.intake.attached(device_id, self, listening=listening)

    def _take_connect(self, first: int, body: bytes) -> None:
        if first >> 4 != packets.CONNECT:
            raise ProtocolError("the first packet is not CONNECT [MQTT-3.1.0-1]")
        packets.check_flags(packets.CONNECT, first & 15)
        self._waits = not self._broker.door.knock(self, packets.decode_connect(body))

    def go_on(self) -> None:
        """It is known who the client is: take what has come meanwhile."""
        self._waits = False
        self.process()
        self.resume_reading()

    def _take_other(self, session: Session, first: int, body: bytes) -> None:
        kind = first >> 4
        packets.check_flags(kind, first & 15)
        match kind:
            case packets.PUBACK:
                self.take_puback(session, packets.decode_packet_id(body))
            case packets.PUBREC:
                self.take_pubrec(session, packets.decode_packet_id(body))
            case packets.PUBCOMP:
                self.take_pubcomp(session, packets.decode_packet_id(body))
            case packets.PUBREL:
                self._broker.release(self, session, packets.decode_packet_id(body))
            case packets.SUBSCRIBE:
                self._broker.subscribe(self, session, *packets.decode_subscribe(body))
            case packets.UNSUBSCRIBE:
                self._broker.unsubscribe(self, session, *packets.decode_unsubscribe(body))
            case packets.PINGREQ:
                if body:
                    raise ProtocolError("PINGREQ has no payload (3.12)")
                self.send(packets.PINGRESP_BYTES)
            case packets.DISCONNECT:
                self._will = None  # [MQTT-3.14.4-3]
                self.close("disconnect")
            case packets.CONNECT:
                raise ProtocolError("a second CONNECT [MQTT-3.1.0-2]")
            case _:
                raise ProtocolError(f"a client does not send packet type {kind} (2.2.1)")

    # ------------------------------------------------------------------ receipts

    def receipt_settled(self, receipt: Receipt) -> None:
        """Acknowledge what is settled, in the order in which it came [MQTT-4.6.0-2], [MQTT-4.6.0-3]."""
        pending = self._pending
        if self.closed_by is not None or not pending or pending[0].outcome is None:
            return
        while pending and (outcome := pending[0].outcome) is not None:
            if outcome is Outcome.RETRY:
                # There is no negative acknowledgement in MQTT 3.1.1: the client sends again when it has reconnected.
                self.close("not_stored", "a message could not be stored; the client still has it")
                return
            head = pending.popleft()
            self.send(packets.puback(head.packet_id) if head.qos == 1 else packets.pubrec(head.packet_id))
        if self._paused and len(pending) * 2 <= self._window:
            broker = self._broker
            if broker.intake.congested or broker.keeper.congested:
                broker.wait_for_relief(self)
            else:
                self.resume_reading()

    def _pause(self) -> None:
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on, unless too much is still unsettled."""
        if not self._paused or self._stopped or self._waits or self.closed_by is not None:
            return
        if self._pending and len(self._pending) > self._window:
            return
        self._paused = False
        # What came while the client had to wait counts from here.
        self._heard_at = self._broker.monotonic()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def stop_reading(self) -> None:
        """Read no more, for good: the bridge stops. Acknowledgements still go out."""
        self._stopped = True
        self._pause()

    # ------------------------------------------------------------------ coming and going

    def accept(self, session: Session, rights: Rights, connect: packets.Connect, *, resumed: bool) -> None:
        """The client is let in: answer, and send again what was in flight."""
        self._session = session
        self._rights = rights
        self._will = connect.will
        self.client_id = session.client_id
        # One and a half times what the client promised [MQTT-3.1.2-24].
        self._keepalive = connect.keepalive * 1.5
        self.send(packets.connack(packets.ACCEPTED, session_present=resumed))
        self.resend(session)

    def refuse(self, code: int, cause: str, detail: str) -> None:
        """Answer CONNECT with a refusal, then close [MQTT-3.2.2-5]."""
        self.send(packets.connack(code))
        self.close(cause, detail)

    @property
    def paused(self) -> bool:
        """Whether nothing is read at the moment."""
        return self._paused

    @property
    def rights(self) -> Rights | None:
        """What the client may do, once it is connected."""
        return self._rights

    def overdue(self, now: float, connect_timeout: float) -> str | None:
        """Why a client that was heard too long ago is to be closed; None while it is in time, or while it is us who
        keep it waiting. `now` is monotonic."""
        silent_for = now - self._heard_at
        if self.closed_by is not None:
            return "lingering" if silent_for > LINGER else None
        if self._paused:
            return None
        if self._session is None:
            return "connect_timeout" if silent_for > connect_timeout else None
        return "keepalive" if self._keepalive and silent_for > self._keepalive else None

    def kick(self, cause: str) -> None:
        """Close the connection on somebody's order."""
        self.close(cause)

    def close(self, cause: str, detail: str = "") -> None:
        """The one way out: everything that the connection holds is given back, whatever the cause."""
        if self.closed_by is not None:
            return
        session, self._session = self._session, None
        self.flush()
        self.closed_by = cause
        self._heard_at = self._broker.monotonic()
        if self._transport is not None:
            self._transport.close()
        self._broker.closed(self, cause, detail)
        devices, self._devices = self._devices, None
        for device_id in devices or ():
            self._broker.intake.detached(device_id, self, cause)
        if session is not None and session.connection is self:
            session.connection = None
            self._broker.left(session)
        will, self._will = self._will, None
        if will is not None and cause != "shutdown":
            self._broker.publish_will(will, self._rights)
        self._rest = b""
        self._routes = {}
        self._pending = None

    def abort(self) -> None:
        """Drop the connection without waiting for the client to read what is left."""
        if self._transport is not None:
            self._transport.abort()
