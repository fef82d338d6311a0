"""One client's network connection: bytes in, messages to the agents; receipts settled, acknowledgements out.

This is the hot path. A PUBLISH is taken apart in place, without a packet object or a task, and everything that is known
of its topic is found with one look into a dictionary.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, cast, final

import structlog

from bridge.broker import packets
from bridge.broker.access import Rights
from bridge.broker.packets import ProtocolError
from bridge.broker.session import Delivery, Session
from bridge.errors import RefusedError
from bridge.messages import Address, Message
from bridge.receipts import Outcome, Receipt

if TYPE_CHECKING:
    from bridge.broker.broker import EmbeddedBroker

log = structlog.get_logger(__name__)

MAX_ROUTES: Final = 256
"""Topics whose meaning one connection remembers; at the limit it forgets them all and starts again."""
MAX_DEVICES: Final = 10_000
"""Devices that one connection (a gateway) may speak for."""
MAX_OUT: Final = 1 << 20
"""Bytes that may wait for the socket before the client counts as one that does not read."""


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
class Connection(asyncio.Protocol):
    """Also the `Link` that the agents see.

    Reading stops while more than `receive_window` of its messages are unsettled, or after a delivery while the intake
    is congested; it goes on at half of the window, so that a connection does not stop and go with every message.
    A client that does not read gets no QoS 0 (dropped, counted), keeps QoS 1 and 2 waiting in its session, and is
    closed (`slow_consumer`) when `max_queued` messages wait.
    """

    __slots__ = (
        "_broker", "_choked", "_devices", "_heard_at", "_keepalive", "_out", "_out_bytes", "_paused", "_pending", "_rest",
        "_rights", "_routes", "_session", "_transport", "_will", "_window", "address", "client_id", "closed_by",
    )  # fmt: skip

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker
        self._transport: asyncio.Transport | None = None
        self._session: Session | None = None
        self._rights: Rights | None = None
        self._will: packets.Will | None = None
        self._rest = b""
        self._routes: dict[bytes, Route] = {}
        self._devices: set[str] | None = None
        self._pending: deque[Receipt] | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._window = broker.config.receive_window
        self._paused = False
        self._choked = False
        self._heard_at = 0.0
        self._keepalive = 0.0
        self.address = ""
        self.client_id = ""
        self.closed_by: str | None = None
        """Why it is closed, None while it is open."""

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
        self.process()

    def process(self) -> None:
        """Handle the whole packets in what has come, and keep the beginning of the next one."""
        try:
            taken = self._parse(self._rest)
        except ProtocolError as error:
            self.close("protocol_error", str(error))
            return
        self._rest = self._rest[taken:]
        pending = self._pending
        if pending and len(pending) > self._window:
            self._pause()
        elif self._broker.intake.congested:
            self._pause()
            self._broker.wait_for_relief(self)

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        self._choked = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._choked = False
        self.send_waiting()

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
            if first & 0xF0 == 0x30:
                if self._session is None:
                    raise ProtocolError("the first packet is not CONNECT [MQTT-3.1.0-1]")
                self._take_publish(data, first, body, stop, now)
            elif self._session is None:
                at = stop
                if self._take_connect(first, data[body:stop]):
                    continue
                return at  # the password is being checked: what follows waits
            else:
                self._take_other(first, data[body:stop])
            at = stop
        return at

    def _take_publish(self, data: bytes, first: int, body: int, stop: int, now: float) -> None:
        qos = first >> 1 & 3
        start = body + 2
        topic_end = start + (data[body] << 8 | data[body + 1]) if start <= stop else stop + 1
        payload_start = topic_end + 2 if qos else topic_end
        if payload_start > stop or qos == 3:
            raise ProtocolError("PUBLISH is too short, or its QoS is 3 [MQTT-3.3.1-4]")
        route = self._routes.get(data[start:topic_end])
        if route is None:
            route = self._learn(data[start:topic_end])
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
                session = self._session
                assert session is not None
                if packet_id in session.unreleased:
                    # It was taken over already [MQTT-4.3.3-2]. If its receipt is still open the PUBREC follows from that.
                    if not any(r.packet_id == packet_id and r.qos == 2 for r in self._pending or ()):
                        self._send(packets.pubrec(packet_id))
                    return
                session.unreleased.add(packet_id)
                if not session.clean:
                    once = (session.client_id, packet_id)
        retain = first & 1
        if retain:
            broker.retain(route.topic, payload, qos)
        address = route.address
        if address is not None or route.refusal is not None:
            receipt = Receipt(broker.ledger, self if qos else None, qos, packet_id, once)
        else:
            receipt = Receipt(broker.passed, self if qos else None, qos, packet_id, once)
        if qos:
            if self._pending is None:
                self._pending = deque()
            self._pending.append(receipt)
        if route.version != broker.tree.version:
            route.subscribers = broker.tree.match(route.topic)
            route.version = broker.tree.version
        if route.subscribers:
            broker.forward(route.subscribers, data[start:topic_end], payload, qos)
        if address is not None:
            broker.intake.deliver(Message(address, payload, now, receipt))
        elif route.refusal is not None:
            broker.intake.refuse(route.topic, payload, route.refusal.reason, str(route.refusal), receipt)
        else:
            broker.settle_passed(receipt, retained=bool(retain), subscribers=route.subscribers)

    def _learn(self, name: bytes) -> Route | None:
        """What a topic means to this client, remembered for the next message; None if it may not publish there."""
        topic = packets.utf8(name)
        packets.check_topic_name(topic)
        broker = self._broker
        if topic.startswith("$"):
            raise ProtocolError("clients may not publish to topics that begin with $ (4.7.2)")
        rights = self._rights
        assert rights is not None
        if not rights.may_publish(topic):
            self.close("not_authorised", f"may not publish to {topic[:200]!r}")
            return None
        address = refusal = None
        levels = topic.count("/") + 1
        try:
            if levels > broker.config.max_topic_levels:
                text = f"the topic has {levels} levels; max_topic_levels is {broker.config.max_topic_levels}"
                if not broker.topics.below_root(topic):
                    self.close("too_many_levels", text)
                    return None
                raise RefusedError("too_many_levels", text)
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

    def _take_connect(self, first: int, body: bytes) -> bool:
        """Whether the client is connected (or closed) when this returns."""
        if first >> 4 != packets.CONNECT:
            raise ProtocolError("the first packet is not CONNECT [MQTT-3.1.0-1]")
        packets.check_flags(packets.CONNECT, first & 15)
        if self.client_id:
            raise ProtocolError("a second CONNECT [MQTT-3.1.0-2]")
        return self._broker.connect(self, packets.decode_connect(body))

    def _take_other(self, first: int, body: bytes) -> None:
        kind = first >> 4
        packets.check_flags(kind, first & 15)
        session = self._session
        assert session is not None
        match kind:
            case packets.PUBACK:
                self._delivered(packets.decode_packet_id(body), qos=1)
            case packets.PUBREC:
                packet_id = packets.decode_packet_id(body)
                delivery = session.inflight.get(packet_id)
                if delivery is not None and delivery.qos == 2:
                    delivery.released = True
                self._send(packets.pubrel(packet_id))
            case packets.PUBCOMP:
                self._delivered(packets.decode_packet_id(body), qos=2)
            case packets.PUBREL:
                self._broker.release(self, session, packets.decode_packet_id(body))
            case packets.SUBSCRIBE:
                self._broker.subscribe(self, session, *packets.decode_subscribe(body))
            case packets.UNSUBSCRIBE:
                self._broker.unsubscribe(self, session, *packets.decode_unsubscribe(body))
            case packets.PINGREQ:
                self._send(packets.PINGRESP_BYTES)
            case packets.DISCONNECT:
                self._will = None  # [MQTT-3.14.4-3]
                self.close("disconnect")
            case packets.CONNECT:
                raise ProtocolError("a second CONNECT [MQTT-3.1.0-2]")
            case _:
                raise ProtocolError(f"a client does not send packet type {kind} (2.2.1)")

    def _delivered(self, packet_id: int, *, qos: int) -> None:
        session = self._session
        assert session is not None
        delivery = session.inflight.get(packet_id)
        if delivery is None or delivery.qos != qos:
            return
        del session.inflight[packet_id]
        if delivery.on_ack is not None:
            delivery.on_ack()
        self._broker.delivered(session, delivery)
        self.send_waiting()

    # ------------------------------------------------------------------ receipts

    def receipt_settled(self, receipt: Receipt) -> None:
        """Acknowledge what is settled, in the order in which it came [MQTT-4.6.0-2], [MQTT-4.6.0-3]."""
        pending = self._pending
        if self.closed_by is not None or pending is None or pending[0].outcome is None:
            return
        while pending and (outcome := pending[0].outcome) is not None:
            head = pending.popleft()
            if outcome is Outcome.RETRY:
                # There is no negative acknowledgement in MQTT 3.1.1: the client sends again when it has reconnected.
                if head.qos == 2 and self._session is not None:
                    self._session.unreleased.discard(head.packet_id)
                self.close("not_stored", "a message could not be stored; the client still has it")
                return
            self._send(packets.puback(head.packet_id) if head.qos == 1 else packets.pubrec(head.packet_id))
        if self._paused and len(pending) * 2 <= self._window and not self._broker.intake.congested:
            self.resume_reading()

    def _pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on, unless too much is still unsettled."""
        if not self._paused or self.closed_by is not None or (self._pending and len(self._pending) > self._window):
            return
        self._paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def stop_reading(self) -> None:
        """Read no more, for good: the bridge stops. Acknowledgements still go out."""
        self._window = -1
        self._pause()

    # ------------------------------------------------------------------ packets out

    def _send(self, data: bytes) -> None:
        if not self._out:
            self._broker.flush_soon(self)
        self._out.append(data)
        self._out_bytes += len(data)

    def flush(self) -> None:
        """Write what this turn of the loop has gathered."""
        out = self._out
        if out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        self._out = []
        self._out_bytes = 0

    def deliver(self, delivery: Delivery) -> bool:
        """Send a message to the client, now or when there is room; False if it was dropped."""
        session = self._session
        if session is None or self.closed_by is not None:
            return False
        full = self._choked or self._out_bytes > MAX_OUT
        if delivery.qos == 0:
            if full:
                self._broker.stats.dropped["slow_consumer"] += 1
                return False
            self._send(packets.publish(delivery.topic, delivery.payload, 0, delivery.retain))
        elif full or session.queued or len(session.inflight) >= self._broker.config.max_inflight:
            if session.queued >= self._broker.config.max_queued:
                self.close("slow_consumer", f"{session.queued} messages wait for a client that does not read")
                return False
            session.enqueue(delivery)
        else:
            self._send_inflight(delivery, session.start(delivery))
        return True

    def send_waiting(self) -> None:
        """Send what waits in the session, as far as there is room."""
        session = self._session
        if session is None or self.closed_by is not None or self._choked or not session.queued:
            return
        for delivery in session.startable(self._broker.clock(), self._broker.config.max_inflight):
            self._send_inflight(delivery, session.start(delivery))

    def _send_inflight(self, delivery: Delivery, packet_id: int, *, dup: bool = False) -> None:
        data = packets.publish(delivery.topic, delivery.payload, delivery.qos, delivery.retain, packet_id, dup)
        self._send(data)

    # ------------------------------------------------------------------ coming and going

    def accept(self, session: Session, rights: Rights, connect: packets.Connect, *, resumed: bool) -> None:
        """The broker has let the client in: answer, and send again what was in flight [MQTT-4.4.0-1]."""
        self._session = session
        self._rights = rights
        self._will = connect.will
        self.client_id = session.client_id
        # One and a half times what the client promised [MQTT-3.1.2-24].
        self._keepalive = connect.keepalive * 1.5
        self._send(packets.connack(packets.ACCEPTED, session_present=resumed))
        session.forget_expired(self._broker.clock())
        for packet_id, delivery in session.inflight.items():
            if delivery.released:
                self._send(packets.pubrel(packet_id))
            else:
                self._send_inflight(delivery, packet_id, dup=True)
        self.send_waiting()

    def refuse(self, code: int, cause: str, detail: str) -> None:
        """Answer CONNECT with a refusal, then close [MQTT-3.2.2-5]."""
        self._send(packets.connack(code))
        self.close(cause, detail)

    def send_subscribed(self, packet_id: int, codes: list[int]) -> None:
        """Answer a SUBSCRIBE."""
        self._send(packets.suback(packet_id, codes))

    def send_unsubscribed(self, packet_id: int) -> None:
        """Answer an UNSUBSCRIBE."""
        self._send(packets.unsuback(packet_id))

    def send_released(self, packet_id: int) -> None:
        """Answer a PUBREL."""
        self._send(packets.pubcomp(packet_id))

    @property
    def session(self) -> Session | None:
        """The client's session, once it is connected."""
        return self._session

    @property
    def rights(self) -> Rights | None:
        """What the client may do, once it is connected."""
        return self._rights

    def overdue(self, now: float, connect_timeout: float) -> str | None:
        """Why a client that was heard too long ago is to be closed; None while it is in time. `now` is monotonic."""
        silent_for = now - self._heard_at
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
        self.closed_by = cause
        self.flush()
        if self._transport is not None:
            self._transport.close()
        self._broker.closed(self, cause, detail)
        session, self._session = self._session, None
        for device_id in self._devices or ():
            self._broker.intake.detached(device_id, self, cause)
        self._devices = None
        if session is not None and session.connection is self:
            session.connection = None
            self._broker.left(session)
        will, self._will = self._will, None
        if will is not None and cause != "shutdown":
            self._broker.publish_will(will, self._rights)
        self._rest = b""
        self._routes.clear()

    def abort(self) -> None:
        """Drop the connection without waiting for the client to read what is left."""
        if self._transport is not None:
            self._transport.abort()
