"""What one client was promised: its messages are acknowledged in the order in which they came, each when it is settled.

This is the hot path: an acknowledgement is four bytes, made without a packet object or a task.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Final, Protocol

from bridge.broker.outbox import Outbox, OutboxBroker
from bridge.broker.packets import ProtocolError
from bridge.broker.session import RELEASING, TAKEN, Ack, Promise
from bridge.broker.share import Share
from bridge.broker.wire import WINDOW
from bridge.receipts import Outcome, Receipt

_PUBACK: Final = 0x40020000
_PUBREC: Final = 0x50020000
"""The first two bytes of each (3.4, 3.5), before the packet identifier."""
_RETRY: Final = Outcome.RETRY
"""A member of an enumeration is looked up anew with each mention of it, which takes longer than all else here."""


class PromisesBroker(OutboxBroker, Protocol):
    """What the keeping of promises needs of the broker."""

    share: Share


class Promises(Outbox):
    """Packets are taken until as many messages are unsettled as the connection's share allows (at most
    `receive_window`), and on at half of that, so that a connection does not stop and go with every message."""

    __slots__ = ("_on_settled", "_pending")

    _broker: PromisesBroker

    def __init__(self, broker: PromisesBroker) -> None:
        super().__init__(broker)
        self._pending: list[Promise] = []
        """What is unsettled, in the order in which it came."""
        self._on_settled: asyncio.Future[None] | None = None
        """Resolved when nothing is unsettled any more: for the shutdown."""

    # ------------------------------------------------------------------ promises given

    def _line_up(self, promise: Promise) -> None:
        """Promise to acknowledge a message, behind what was promised before."""
        if promise.qos == 0:
            return
        if promise.qos == 2:
            self._session().receive(promise.packet_id, promise)
        share = self._broker.share
        pending = self._pending
        if not pending:
            share.enter()
        pending.append(promise)
        if len(pending) >= share.window:
            self.hold(WINDOW)

    def _is_repeated(self, packet_id: int) -> bool:
        """Whether a QoS 2 message was taken over before: it is answered again, not handed on again [MQTT-4.3.3-2]."""
        known = self._session().inbound.get(packet_id)
        if known is None:
            return False
        if known is RELEASING:
            raise ProtocolError("a packet identifier is used again before its PUBCOMP [MQTT-2.3.1-2]")
        if not self._pending:
            self._broker.share.enter()
        self._pending.append(Ack(2, packet_id, Outcome.COMMITTED) if known is TAKEN else known)
        self.flush_later()
        return True

    # ------------------------------------------------------------------ promises kept

    def when_settled(self) -> asyncio.Future[None]:
        """Resolved when nothing is unsettled any more, or the connection is closed."""
        if self._on_settled is None:
            self._on_settled = asyncio.get_running_loop().create_future()
        return self._on_settled

    @property
    def settled(self) -> bool:
        """Whether everything that was taken has been answered."""
        return not self._pending

    def receipt_settled(self, receipt: Receipt) -> None:
        """An agent's or the writer's word about a message: see `Owner`."""
        if receipt.qos == 2:
            self.kept(receipt, receipt.outcome or Outcome.RETRY)
        elif not self._flushing:
            self.flush_later()

    def kept(self, promise: Promise, outcome: Outcome) -> None:
        """A promise has come to its end. For QoS 2 that counts for the session, which may have another connection by
        now: there the client has sent the message again, and waits."""
        if isinstance(promise, Ack):
            promise.outcome = outcome
        session = self._session()
        if promise.qos == 2 and session.inbound.get(promise.packet_id) is promise:
            if outcome is Outcome.RETRY:
                session.release(promise.packet_id)
            else:
                session.receive(promise.packet_id, TAKEN)
            if session.connection is not None and session.connection is not self:
                session.connection.flush_later()
        self.flush_later()

    def _stored(self, ack: Ack, stored: asyncio.Future[None]) -> None:
        failed = stored.cancelled() or stored.exception() is not None
        self.kept(ack, Outcome.RETRY if failed else Outcome.COMMITTED)

    def send(self, packet: bytes) -> None:
        """Write a packet behind what is settled already: answers leave in the order in which they became true."""
        if self._pending and self._pending[0].outcome is not None and self.closed_by is None:
            self._acknowledge()
        super().send(packet)

    def _acknowledge(self) -> bool:
        """Acknowledge what is settled, in the order in which it came [MQTT-4.6.0-2], [MQTT-4.6.0-3]. False if the next
        one will never be."""
        pending = self._pending
        if len(pending) == 1 and pending[0].outcome not in (None, _RETRY):
            promise = pending.pop()
            self._broker.share.leave()
            self._out.append(((_PUBACK if promise.qos == 1 else _PUBREC) | promise.packet_id).to_bytes(4, "big"))
            self._out_bytes += 4
            return True
        acks: list[int] = []
        for promise in pending:
            outcome = promise.outcome
            if outcome is None or outcome is _RETRY:
                break
            acks.append((_PUBACK if promise.qos == 1 else _PUBREC) | promise.packet_id)
        if acks:
            del pending[: len(acks)]
            if not pending:
                self._broker.share.leave()
            self._out.append(struct.pack(f">{len(acks)}I", *acks))
            self._out_bytes += 4 * len(acks)
        return not (pending and pending[0].outcome is _RETRY)

    def flush(self) -> None:
        """Write what this turn of the loop has gathered."""
        self._flushing = False
        if self.closed_by is not None:
            return
        good = not self._pending or self._acknowledge()
        self._write()
        if not good:
            # There is no negative acknowledgement in MQTT 3.1.1: the client sends again when it has reconnected.
            self.close("not_stored", "a message could not be stored; the client still has it")
        elif self._held & WINDOW and len(self._pending) * 2 <= self._broker.share.window:
            self.let_go(WINDOW)
        if self._on_settled is not None and not self._pending:
            self._tell_settled()

    def _give_up(self) -> None:
        """Acknowledge what is settled; the rest never will be, for the connection ends."""
        self._acknowledge()
        if self._pending:
            self._broker.share.leave()

    def _tell_settled(self) -> None:
        if self._on_settled is not None and not self._on_settled.done():
            self._on_settled.set_result(None)
