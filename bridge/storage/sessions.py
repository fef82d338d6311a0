"""The broker's memory: kept sessions, their messages, retained messages, and QoS 2 identifiers not yet released.

Everything that changes while a batch of the writer is filled is gathered and goes into it as a single change. What is
undone before the batch is full (a message that is stored and acknowledged at once) costs the database nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NamedTuple, Protocol, final

import msgspec
from sqlalchemy import Table, bindparam, delete, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.storage import bulk, tables
from bridge.storage.database import Database
from bridge.storage.writer import Writer

ROWS_AT_ONCE: Final = 200
"""Rows per statement. SQLite allows 32,766 parameters; few statements matter more than large ones here."""

QUEUED: Final = "queued"
SENT: Final = "sent"
RELEASED: Final = "released"


class Storable(Protocol):
    """A message on its way to a client, as the broker has it."""

    topic: bytes
    payload: bytes
    qos: int
    retain: bool
    seq: int
    released: bool
    expires_at: float | None


class StoredSession(NamedTuple):
    """A kept session. `absent_since` is in Unix seconds, None if the client was connected when the bridge ended."""

    client_id: str
    username: str | None
    subscriptions: dict[str, int]
    absent_since: float | None


class StoredMessage(NamedTuple):
    """A message for a kept session: in flight if it has a packet identifier, else waiting."""

    client_id: str
    seq: int
    topic: bytes
    payload: bytes
    qos: int
    retain: bool
    packet_id: int | None
    released: bool
    expires_at: float | None


class Kept(NamedTuple):
    """All that the last run has left, messages in the order of their numbers."""

    sessions: list[StoredSession]
    messages: list[StoredMessage]
    retained: list[tuple[str, bytes, int]]
    taken: list[tuple[str, int]]


Key = tuple[str, int]


@dataclass(slots=True)
class _Changes:
    """What has changed while one batch was filled. What is undone in here leaves no trace. Implements `Packable`."""

    kind: ClassVar[str] = "sessions"
    ended: set[str] = field(default_factory=set)
    saved: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    released: set[Key] = field(default_factory=set)
    taken: set[Key] = field(default_factory=set)
    added: dict[Key, tuple[Any, ...]] = field(default_factory=dict)
    marked: dict[Key, tuple[int, str]] = field(default_factory=dict)
    removed: set[Key] = field(default_factory=set)
    retained: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    cleared: set[str] = field(default_factory=set)

    def pack(self) -> bytes:
        """All of it as bytes, for the spool."""
        return msgspec.msgpack.encode(self)

    async def execute(self, connection: AsyncConnection) -> None:
        """May be called more than once: the effect is the same."""
        ended = [(client_id,) for client_id in self.ended]
        for table in (tables.sessions, tables.session_messages, tables.inbound_once):
            await _delete(connection, table, ("client_id",), ended)
        await _delete(connection, tables.inbound_once, ("client_id", "packet_id"), list(self.released))
        inserts = [
            (_SESSIONS, _flat(self.saved.values())),
            (bulk.INBOUND_ONCE, _flat(self.taken)),
            (_MESSAGES, _flat(self.added.values())),
            (_RETAINED, _flat(self.retained.values())),
        ]
        await bulk.insert(connection, [(statement, flat) for statement, flat in inserts if flat])
        if self.marked:
            rows = [{"c": c, "s": s, "p": p, "st": state} for (c, s), (p, state) in self.marked.items()]
            await connection.execute(_MARK, rows)
        await _delete(connection, tables.session_messages, ("client_id", "seq"), list(self.removed))
        await _delete(connection, tables.retained, ("topic",), [(topic,) for topic in self.cleared])


_MARK: Final = (
    update(tables.session_messages)
    .where(
        tables.session_messages.c.client_id == bindparam("c"),
        tables.session_messages.c.seq == bindparam("s"),
    )
    .values(packet_id=bindparam("p"), state=bindparam("st"))
)


@final
class SessionStore:
    """Every method that changes something returns the same future for all that goes into one change: it is resolved
    when that is durable. All this stays in order with the writer's rows: what is not waited for is durable with what
    is handed to the writer after it, and never before what was handed to it earlier, so that after a crash no retained
    message tells of a presence that was not stored."""

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database = database
        self._writer = writer
        self._changes = _Changes()
        self._batch_number = -1
        """The writer's batch that `_changes` belongs to."""
        self._stored: asyncio.Future[None] | None = None
        """Of the change that `_changes` is; None when all is durable."""

    @property
    def stored(self) -> asyncio.Future[None] | None:
        """Resolved when everything recorded so far, and not known to be durable, is."""
        return self._stored

    async def load(self) -> Kept:
        """All that there is. Raises StorageUnavailableError."""
        return await self._database.read(_load)

    # ------------------------------------------------------------------ sessions

    def save(
        self,
        client_id: str,
        username: str | None,
        subscriptions: dict[str, int],
        absent_since: float | None,
        now: float,
    ) -> asyncio.Future[None]:
        """Store a kept session as it is now."""
        changes, stored = self._gather()
        encoded = msgspec.json.encode(subscriptions).decode()
        changes.saved[client_id] = (client_id, username, encoded, absent_since or now, absent_since)
        return stored

    def end(self, client_id: str) -> asyncio.Future[None]:
        """Forget a session and all that belongs to it."""
        changes, stored = self._gather()
        changes.saved.pop(client_id, None)
        for gathered in (changes.released, changes.taken, changes.removed):
            gathered.difference_update([key for key in gathered if key[0] == client_id])
        for key in [key for key in changes.added if key[0] == client_id]:
            del changes.added[key]
        for key in [key for key in changes.marked if key[0] == client_id]:
            del changes.marked[key]
        changes.ended.add(client_id)
        return stored

    # ------------------------------------------------------------------ messages to clients

    def add(self, client_id: str, message: Storable) -> asyncio.Future[None]:
        """Store a message that waits for a client."""
        changes, stored = self._gather()
        changes.added[client_id, message.seq] = (
            client_id,
            message.seq,
            message.topic.decode(),
            message.payload,
            message.qos,
            int(message.retain),
            None,
            QUEUED,
            message.expires_at,
        )
        return stored

    def mark(self, client_id: str, message: Storable, packet_id: int) -> asyncio.Future[None]:
        """Store that a message is in flight under a packet identifier, or released by its receiver."""
        changes, stored = self._gather()
        key = client_id, message.seq
        state = RELEASED if message.released else SENT
        row = changes.added.get(key)
        if row is not None:
            changes.added[key] = (*row[:6], packet_id, state, row[8])
        else:
            changes.marked[key] = packet_id, state
        return stored

    def remove(self, client_id: str, seq: int) -> None:
        """A message has been delivered, or given up."""
        changes, _ = self._gather()
        key = client_id, seq
        changes.marked.pop(key, None)
        if changes.added.pop(key, None) is None:
            changes.removed.add(key)

    # ------------------------------------------------------------------ messages from clients

    def take(self, client_id: str, packet_id: int) -> asyncio.Future[None]:
        """Store that a QoS 2 message has been taken over. (For the agents' messages the writer does that.)"""
        changes, stored = self._gather()
        changes.taken.add((client_id, packet_id))
        return stored

    def release(self, client_id: str, packet_id: int) -> asyncio.Future[None]:
        """Forget a QoS 2 message that its sender has released."""
        changes, stored = self._gather()
        key = client_id, packet_id
        changes.taken.discard(key)
        changes.released.add(key)
        return stored

    # ------------------------------------------------------------------ retained messages

    def retain(self, topic: str, payload: bytes, qos: int, now: float) -> asyncio.Future[None]:
        """Store the last message of a topic; an empty one clears it."""
        changes, stored = self._gather()
        if payload:
            changes.cleared.discard(topic)
            changes.retained[topic] = (topic, payload, qos, now)
        else:
            changes.retained.pop(topic, None)
            changes.cleared.add(topic)
        return stored

    # ------------------------------------------------------------------ into the writer

    def _gather(self) -> tuple[_Changes, asyncio.Future[None]]:
        """What the batch that is being filled will change, and the future of it."""
        stored = self._stored
        if stored is None or self._batch_number != self._writer.batch_number:
            self._changes = _Changes()
            self._batch_number = self._writer.batch_number
            self._stored = stored = self._writer.add_change(self._changes.execute, packable=self._changes)
            stored.add_done_callback(self._finished)
        return self._changes, stored

    def _finished(self, stored: asyncio.Future[None]) -> None:
        if self._stored is stored:
            self._stored = None
        if not stored.cancelled():
            stored.exception()  # whoever waits for it has been told; nobody need have waited


def unpack_changes(data: bytes) -> Callable[[AsyncConnection], Awaitable[None]]:
    """What was spooled of the store's changes, to be executed."""
    return msgspec.msgpack.decode(data, type=_Changes).execute


async def _load(connection: AsyncConnection) -> Kept:
    sessions = [
        StoredSession(client_id, username, msgspec.json.decode(subscriptions, type=dict[str, int]), expires_at)
        for client_id, username, subscriptions, expires_at in await connection.execute(
            select(
                tables.sessions.c.client_id,
                tables.sessions.c.username,
                tables.sessions.c.subscriptions,
                tables.sessions.c.expires_at,
            )
        )
    ]
    stored = tables.session_messages
    messages = [
        StoredMessage(c, seq, topic.encode(), payload, qos, bool(retain), packet_id, state == RELEASED, expires_at)
        for c, seq, topic, payload, qos, retain, packet_id, state, expires_at in await connection.execute(
            select(stored).order_by(stored.c.seq)
        )
    ]
    kept = tables.retained
    retained = [(t, p, q) for t, p, q in await connection.execute(select(kept.c.topic, kept.c.payload, kept.c.qos))]
    taken = [(c, p) for c, p in await connection.execute(select(tables.inbound_once))]
    return Kept(sessions, messages, retained, taken)


async def _delete(
    connection: AsyncConnection, table: Table, columns: tuple[str, ...], keys: list[tuple[Any, ...]]
) -> None:
    """Delete the rows with any of the keys."""
    if not keys:
        return  # nearly always, and to say in SQL what is meant costs more than to insert the rows of a device
    key = tuple_(*(table.c[column] for column in columns))
    for start in range(0, len(keys), ROWS_AT_ONCE):
        await connection.execute(delete(table).where(key.in_(keys[start : start + ROWS_AT_ONCE])))


def _flat(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    return [value for row in rows for value in row]


def _replace(table: Table, keys: int) -> bulk.Insert:
    """An INSERT of whole rows that replaces what is there; the first `keys` columns are the key."""
    names = tuple(column.name for column in table.columns)
    sets = ", ".join(f"{name} = excluded.{name}" for name in names[keys:])
    return bulk.Insert(table, names, f"ON CONFLICT ({', '.join(names[:keys])}) DO UPDATE SET {sets}")


_SESSIONS: Final = _replace(tables.sessions, 1)
_MESSAGES: Final = _replace(tables.session_messages, 2)
_RETAINED: Final = _replace(tables.retained, 1)
