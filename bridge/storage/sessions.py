"""What the broker must remember over a restart: sessions, their messages, QoS 2 identifiers and retained messages.

Changes are gathered on a page, which is one change of the writer's batch: of several changes of the same thing only the
last is written, and a message that was delivered before its page is committed costs nothing. A page is handed to the
writer with its first entry, so whatever is handed to the writer afterwards is not committed before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, final

import msgspec
import structlog
from sqlalchemy import TextClause, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.receipts import Outcome, Receipt
from bridge.storage import bulk
from bridge.storage.database import Database
from bridge.storage.tables import inbound_once, retained, session_messages, sessions
from bridge.storage.writer import Writer

log = structlog.get_logger(__name__)

PAGE_ROWS: Final = 2_000
"""A page is full with so many entries, and the next one begins."""
CAPACITY: Final = 50_000
"""Entries (a large payload counts once more for each KiB) that may wait for their commit before the store is congested;
it is relieved at half of that."""

Callback = Callable[[], None]


class StoredMessage(NamedTuple):
    """A QoS 1 or 2 message to a client. `state`: queued, sent or released; from sent on it has a packet id."""

    client_id: str
    seq: int
    topic: str
    payload: bytes
    qos: int
    retain: bool
    packet_id: int | None
    state: str
    expires_at: float | None


class StoredRetained(NamedTuple):
    """The last retained message of a topic."""

    topic: str
    payload: bytes
    qos: int


class StoredSession(NamedTuple):
    """A session that is kept while its client is away; `last_seen` is when it was last changed (Unix seconds)."""

    client_id: str
    username: str | None
    subscriptions: dict[str, int]
    last_seen: float


class Stored(NamedTuple):
    """Everything, as it was committed last. Messages are in the order of `seq`, per client the order of sending."""

    sessions: list[StoredSession]
    messages: list[StoredMessage]
    once: list[tuple[str, int]]
    retained: list[StoredRetained]


@final
class _Page:
    """Changes that are committed together."""

    __slots__ = (
        "callbacks", "first_seq", "forgotten", "messages", "once", "receipts", "retained", "sealed", "sessions", "size",
    )  # fmt: skip

    def __init__(self, first_seq: int) -> None:
        self.size = 0
        self.first_seq = first_seq
        """Messages from this number on are in no earlier page."""
        self.sealed = False
        """Whether it may already be on its way into the database."""
        self.forgotten: set[str] = set()
        self.sessions: dict[str, StoredSession] = {}
        self.messages: dict[str, dict[int, StoredMessage | None]] = {}
        self.once: dict[str, dict[int, bool]] = {}
        """By client and packet id: whether it is to be there."""
        self.retained: dict[str, StoredRetained] = {}
        self.receipts: list[Receipt] = []
        self.callbacks: list[Callback] = []

    def forget(self, client_id: str) -> None:
        """A session has ended: nothing of what came before is to be written."""
        self.sessions.pop(client_id, None)
        self.messages.pop(client_id, None)
        self.once.pop(client_id, None)
        self.forgotten.add(client_id)

    async def store(self, connection: AsyncConnection) -> None:
        """Write it; possibly more than once, until it is committed."""
        self.sealed = True
        delete = _DELETE[connection.dialect.name]
        if self.forgotten:
            ids = msgspec.json.encode(list(self.forgotten)).decode()
            for statement in delete.sessions:
                await connection.execute(statement, {"keys": ids})
        gone = [(c, seq) for c, rows in self.messages.items() for seq, row in rows.items() if row is None]
        released = [(c, packet_id) for c, ids in self.once.items() for packet_id, there in ids.items() if not there]
        cleared = [message.topic for message in self.retained.values() if not message.payload]
        for keys, statement in ((gone, delete.messages), (released, delete.once), (cleared, delete.retained)):
            if keys:
                await connection.execute(statement, {"keys": msgspec.json.encode(keys).decode()})
        await bulk.insert(connection, [(insert, flat) for insert, flat in self._inserts() if flat])

    def _inserts(self) -> list[tuple[bulk.Insert, list[Any]]]:
        rows: list[Any] = []
        for session in self.sessions.values():
            subscriptions = msgspec.json.encode(session.subscriptions).decode()
            rows += (session.client_id, session.username, subscriptions, session.last_seen)
        messages: list[Any] = []
        for kept in self.messages.values():
            for message in kept.values():
                if message is not None:
                    messages += message
        once = [value for c, ids in self.once.items() for i, there in ids.items() if there for value in (c, i)]
        now = time.time()
        last: list[Any] = []
        for topic, payload, qos in self.retained.values():
            if payload:
                last += (topic, payload, qos, now)
        return [(_SESSIONS, rows), (_MESSAGES, messages), (bulk.INBOUND_ONCE, once), (_RETAINED, last)]


@final
class SessionStore:
    """Methods that change something return at once; `then` and `settle` say when it is committed."""

    def __init__(self, database: Database, writer: Writer) -> None:
        self.congested = False
        self.on_relief: Callback | None = None
        """Called when `congested` has become False again."""
        self.changes = 0
        """Grows with every change that is handed over."""
        self._database = database
        self._writer = writer
        self._last_seq = 0
        self._page: _Page | None = None
        """The last page that is not committed."""
        self._waiting = 0

    async def load(self) -> Stored:
        """Everything that is stored. Raises StorageUnavailableError or StorageError."""
        stored = await self._database.read(_load)
        self._last_seq = max((message.seq for message in stored.messages), default=0)
        return stored

    def next_seq(self) -> int:
        """A number for a message, greater than all others."""
        self._last_seq += 1
        return self._last_seq

    @property
    def pending(self) -> int:
        """Entries that wait for their commit."""
        return self._waiting

    # ------------------------------------------------------------------ changes

    def save_session(self, session: StoredSession) -> None:
        """A session is new, or its subscriptions have changed, or its client has left."""
        self._open(1).sessions[session.client_id] = session

    def forget_session(self, client_id: str) -> None:
        """A session has ended, with all that belongs to it."""
        self._open(1).forget(client_id)

    def save_message(self, message: StoredMessage) -> None:
        """A message waits for its client, was given a packet id, or was released."""
        page = self._open(1 + (len(message.payload) >> 10))
        page.messages.setdefault(message.client_id, {})[message.seq] = message

    def delete_message(self, client_id: str, seq: int) -> None:
        """A message has arrived, or will never."""
        page = self._open(1)
        rows = page.messages.setdefault(client_id, {})
        if seq < page.first_seq:
            rows[seq] = None
        else:
            rows.pop(seq, None)

    def add_once(self, client_id: str, packet_id: int) -> None:
        """A QoS 2 message was taken over that no row of the writer's carries."""
        self._open(1).once.setdefault(client_id, {})[packet_id] = True

    def delete_once(self, client_id: str, packet_id: int) -> None:
        """A QoS 2 message was released."""
        self._open(1).once.setdefault(client_id, {})[packet_id] = False

    def retain(self, message: StoredRetained) -> None:
        """Keep a topic's last message; one without payload clears it."""
        self._open(1 + (len(message.payload) >> 10)).retained[message.topic] = message

    # ------------------------------------------------------------------ after the commit

    def settle(self, receipt: Receipt) -> None:
        """Have `receipt` become COMMITTED when all that was handed over so far is committed, RETRY if it cannot be."""
        if self._page is None:
            receipt.settle(Outcome.COMMITTED)
        else:
            self._page.receipts.append(receipt)

    def then(self, callback: Callback) -> None:
        """Call when all that was handed over so far is committed; never, if it cannot be."""
        if self._page is None:
            callback()
        else:
            self._page.callbacks.append(callback)

    async def drain(self, timeout: float) -> None:
        """Wait until nothing is pending, for at most `timeout` seconds."""
        drained = asyncio.Event()
        self.then(drained.set)
        try:
            async with asyncio.timeout(timeout):
                await drained.wait()
        except TimeoutError:
            log.warning("sessions could not be stored in time; their senders are not acknowledged", left=self._waiting)

    def _open(self, weight: int) -> _Page:
        self.changes += 1
        page = self._page
        if page is None or page.sealed or page.size >= PAGE_ROWS:
            page = self._page = _Page(self._last_seq + 1)
            written = self._writer.submit(page.store)
            opened = page
            written.add_done_callback(lambda future: self._committed(opened, future))
        page.size += weight
        self._waiting += weight
        if self._waiting > CAPACITY:
            self.congested = True
        return page

    def _committed(self, page: _Page, future: asyncio.Future[None]) -> None:
        self._waiting -= page.size
        if self._page is page:
            self._page = None
        error = None if future.cancelled() else future.exception()
        if error is not None:
            log.error("sessions could not be stored", changes=page.size, error=str(error))
        lost = error is not None or future.cancelled()
        for receipt in page.receipts:
            receipt.settle(Outcome.RETRY if lost else Outcome.COMMITTED)
        if not lost:
            for callback in page.callbacks:
                callback()
        if self.congested and self._waiting <= CAPACITY // 2:
            self.congested = False
            if self.on_relief is not None:
                self.on_relief()


# ---------------------------------------------------------------------- statements

_SESSIONS: Final = bulk.Insert(
    sessions,
    ("client_id", "username", "subscriptions", "last_seen"),
    "ON CONFLICT (client_id) DO UPDATE SET username = excluded.username, subscriptions = excluded.subscriptions,"
    " last_seen = excluded.last_seen",
)
_MESSAGES: Final = bulk.Insert(
    session_messages,
    StoredMessage._fields,
    "ON CONFLICT (client_id, seq) DO UPDATE SET packet_id = excluded.packet_id, state = excluded.state",
)
_RETAINED: Final = bulk.Insert(
    retained,
    ("topic", "payload", "qos", "set_at"),
    "ON CONFLICT (topic) DO UPDATE SET payload = excluded.payload, qos = excluded.qos, set_at = excluded.set_at",
)


class _Delete(NamedTuple):
    sessions: tuple[TextClause, ...]
    messages: TextClause
    once: TextClause
    retained: TextClause


# One parameter for any number of keys: always the same statement.
_ONE: Final = {
    "sqlite": "SELECT value FROM json_each(:keys)",
    "postgresql": "SELECT json_array_elements_text(CAST(:keys AS json))",
}
_TWO: Final = {
    "sqlite": "SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:keys)",
    "postgresql": "SELECT k ->> 0, CAST(k ->> 1 AS bigint) FROM json_array_elements(CAST(:keys AS json)) AS k",
}


def _deletes(dialect: str) -> _Delete:
    one, two = _ONE[dialect], _TWO[dialect]
    owned = (sessions, session_messages, inbound_once)
    return _Delete(
        tuple(text(f"DELETE FROM {table.name} WHERE client_id IN ({one})") for table in owned),  # noqa: S608 - our own tables
        text(f"DELETE FROM session_messages WHERE (client_id, seq) IN ({two})"),  # noqa: S608 - our own statement
        text(f"DELETE FROM inbound_once WHERE (client_id, packet_id) IN ({two})"),  # noqa: S608 - our own statement
        text(f"DELETE FROM retained WHERE topic IN ({one})"),  # noqa: S608 - our own statement
    )


_DELETE: Final = {dialect: _deletes(dialect) for dialect in _ONE}


async def _load(connection: AsyncConnection) -> Stored:
    columns = sessions.c
    kept = await connection.execute(
        select(columns.client_id, columns.username, columns.subscriptions, columns.last_seen)
    )
    decode = msgspec.json.Decoder(dict[str, int]).decode
    order = (session_messages.c.client_id, session_messages.c.seq)
    waiting = select(*(session_messages.c[name] for name in StoredMessage._fields)).order_by(*order)
    last = select(retained.c.topic, retained.c.payload, retained.c.qos)
    return Stored(
        [StoredSession(client_id, username, decode(wanted), seen) for client_id, username, wanted, seen in kept],
        [StoredMessage(*row) for row in await connection.execute(waiting)],
        [(client_id, packet_id) for client_id, packet_id in await connection.execute(select(inbound_once))],
        [StoredRetained(*row) for row in await connection.execute(last)],
    )
