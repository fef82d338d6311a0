"""What outlives the bridge: the broker's sessions, messages and retained messages, put into the store and taken back.

Without a store everything counts as kept at once, which is what tests of the protocol alone want.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

from bridge.broker.retained import Retained
from bridge.broker.session import Delivery, Session
from bridge.receipts import Outcome, Receipt
from bridge.storage.sessions import SessionStore, StoredMessage, StoredRetained, StoredSession

if TYPE_CHECKING:
    from bridge.broker.broker import EmbeddedBroker


@final
class Keeper:
    """Says what is to be stored; the store says when it is."""

    __slots__ = ("_store",)

    def __init__(self, store: SessionStore | None) -> None:
        self._store: Final = store

    @property
    def congested(self) -> bool:
        """Whether too much waits to be stored: nothing more is read then."""
        return self._store is not None and self._store.congested

    @property
    def settled(self) -> bool:
        """Whether everything is stored."""
        return self._store is None or self._store.pending == 0

    @property
    def changes(self) -> int:
        """Grows with all that is to be stored."""
        return 0 if self._store is None else self._store.changes

    def on_relief(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when it is no longer congested."""
        if self._store is not None:
            self._store.on_relief = callback

    async def restore(self, broker: EmbeddedBroker) -> None:
        """Take back what was stored. Raises StorageUnavailableError or StorageError."""
        if self._store is None:
            return
        stored = await self._store.load()
        for saved in stored.sessions:
            session = Session(saved.client_id, clean=False, username=saved.username, last_seen=saved.last_seen)
            broker.clients[saved.client_id] = session
            for topic_filter, qos in saved.subscriptions.items():
                session.subscriptions[topic_filter] = qos
                broker.tree.add(topic_filter, session, qos)
        # What belongs to no session was left by one that ended, or never began, in the moment of a crash.
        orphans = set()
        for row in stored.messages:
            owner = broker.clients.get(row.client_id)
            if owner is None:
                orphans.add(row.client_id)
                continue
            delivery = Delivery(row.topic.encode(), row.payload, row.qos, bool(row.retain), row.expires_at)
            delivery.seq = row.seq
            delivery.released = row.state == "released"
            owner.restore(delivery, row.packet_id)
        for client_id, packet_id in stored.once:
            owner = broker.clients.get(client_id)
            if owner is None:
                orphans.add(client_id)
            else:
                owner.unreleased[packet_id] = None
        for client_id in orphans:
            self._store.forget_session(client_id)
        for message in stored.retained:
            broker.kept.set(Retained(*message))

    async def drain(self, timeout: float) -> None:
        """Wait until everything is stored, for at most `timeout` seconds."""
        if self._store is not None:
            await self._store.drain(timeout)

    # ------------------------------------------------------------------ when it is stored

    def then(self, callback: Callable[[], None]) -> None:
        """Call when everything so far is stored."""
        if self._store is None:
            callback()
        else:
            self._store.then(callback)

    def settle(self, receipt: Receipt) -> None:
        """Settle a receipt when everything so far is stored."""
        if self._store is None:
            receipt.settle(Outcome.COMMITTED)
        else:
            self._store.settle(receipt)

    # ------------------------------------------------------------------ sessions

    def session_changed(self, session: Session) -> None:
        """A session is new, or its subscriptions have changed, or its client has left."""
        if self._store is not None and not session.clean:
            self._store.save_session(
                StoredSession(session.client_id, session.username, dict(session.subscriptions), session.last_seen)
            )

    def session_ended(self, client_id: str) -> None:
        """A session is no more."""
        if self._store is not None:
            self._store.forget_session(client_id)

    # ------------------------------------------------------------------ messages to clients

    def queued(self, session: Session, delivery: Delivery) -> None:
        """A message waits for the client."""
        self._save(session, delivery, None, "queued")

    def started(self, session: Session, delivery: Delivery, packet_id: int) -> bool:
        """A message has its packet identifier. False if the client may not have it before that is stored: a client
        knows a QoS 2 message that it gets once more by its identifier alone [MQTT-4.4.0-1]."""
        return not self._save(session, delivery, packet_id, "sent") or delivery.qos < 2

    def received(self, session: Session, delivery: Delivery, packet_id: int) -> None:
        """The client has a QoS 2 message; once PUBREL is sent it forgets the identifier."""
        self._save(session, delivery, packet_id, "released")

    def done(self, session: Session, delivery: Delivery) -> None:
        """A message has arrived, or may not be delivered any more."""
        if delivery.seq and self._store is not None:
            self._store.delete_message(session.client_id, delivery.seq)

    def _save(self, session: Session, delivery: Delivery, packet_id: int | None, state: str) -> bool:
        store = self._store
        if store is None or session.clean or not delivery.lasting:
            return False
        if not delivery.seq:
            delivery.seq = store.next_seq()
        store.save_message(
            StoredMessage(
                session.client_id,
                delivery.seq,
                delivery.topic.decode(),
                delivery.payload,
                delivery.qos,
                delivery.retain,
                packet_id,
                state,
                delivery.expires_at,
            )
        )
        return True

    # ------------------------------------------------------------------ messages from clients

    def taken_over(self, once: tuple[str, int]) -> None:
        """An ordinary QoS 2 message is ours; the identifiers of others are stored with their effect."""
        if self._store is not None:
            self._store.add_once(*once)

    def released(self, session: Session, packet_id: int) -> None:
        """The client may use the identifier again once this is stored."""
        if self._store is not None and not session.clean:
            self._store.delete_once(session.client_id, packet_id)

    def retained(self, message: Retained) -> None:
        """A topic's last message is another one."""
        if self._store is not None:
            self._store.retain(StoredRetained(message.topic, message.payload, message.qos))
