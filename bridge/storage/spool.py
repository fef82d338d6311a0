"""Store and forward: a file on the local disk that takes the rows while the database cannot.

A queue of batches. What has been appended survives the end of the process and of the machine, so its messages may be
acknowledged; it is taken out in the same order, and removed only after the database has committed it.

An SQLite file of its own beside the data, with `synchronous=FULL` and a thread of its own like every SQLite connection
here. It belongs to one bridge, and to the database that it was filled for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self, final

from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.errors import StartError, StorageUnavailableError
from bridge.storage import engine, packing
from bridge.storage.batch import Batch
from bridge.storage.faults import is_driver_error, wrap
from bridge.storage.lock import FileLock
from bridge.storage.packing import Unpack

FORWARD_ROWS: Final = 4_096
"""Rows that are taken out together, at least one batch."""
_BATCHES: Final = 1_024
"""Batches that are taken out together at most."""

_SCHEMA: Final = text(
    "CREATE TABLE IF NOT EXISTS batches"
    " (seq INTEGER PRIMARY KEY, at REAL NOT NULL, rows INTEGER NOT NULL, body BLOB NOT NULL)"
)
_IDS_SCHEMA: Final = text("CREATE TABLE IF NOT EXISTS ids (one INTEGER PRIMARY KEY, last INTEGER NOT NULL)")
_IDS: Final = text("SELECT last FROM ids")
_NOTE_IDS: Final = text("INSERT OR REPLACE INTO ids (one, last) VALUES (1, :last)")
_APPEND: Final = text("INSERT OR REPLACE INTO batches (seq, at, rows, body) VALUES (:seq, :at, :rows, :body)")
_SIZES: Final = text(f"SELECT seq, rows FROM batches ORDER BY seq LIMIT {_BATCHES}")  # noqa: S608 - a number
_BODIES: Final = text("SELECT seq, body FROM batches WHERE seq <= :last ORDER BY seq")
_COUNT: Final = text("SELECT coalesce(sum(rows), 0), coalesce(sum(length(body)), 0) FROM batches WHERE seq <= :last")
_REMOVE: Final = text("DELETE FROM batches WHERE seq <= :last")
_OLDEST: Final = text("SELECT at FROM batches ORDER BY seq LIMIT 1")
_LAST: Final = text("SELECT max(seq) FROM batches")
_NEXT: Final = text("SELECT seq, rows, body FROM batches WHERE seq > :after ORDER BY seq LIMIT 1")
_REPLACE: Final = text("UPDATE batches SET rows = :rows, body = :body WHERE seq = :seq")


@final
class Spool:
    """Made by `open`. Every method that touches the file raises StorageUnavailableError when that fails."""

    def __init__(
        self, path: Path, *, max_bytes: int, drop_oldest: bool, unpack: Mapping[str, Unpack], clock: Callable[[], float]
    ) -> None:
        self.rows = 0
        """Rows and changes in it."""
        self.bytes = 0
        """Size of the batches in it; the file is a little larger."""
        self.oldest: float | None = None
        """When the oldest batch was appended, Unix seconds; None when it is empty."""
        self.appended = 0
        """Rows and changes appended since the start."""
        self.forwarded = 0
        """Rows and changes that were in the database before they were removed."""
        self.dropped = 0
        """Readings thrown away at the limit: only where `drop_oldest` allows that."""
        self.last_id: int | None = None
        """From where the last writer gave ids to rows; None if none has ever begun beside this spool."""
        self._path = path
        self._max_bytes = max_bytes
        self._drop_oldest = drop_oldest
        self._unpack = unpack
        self._clock = clock
        self._last = 0
        self._emptied = 0
        """Up to here no batch holds readings any more: they were dropped."""
        self._turn = asyncio.Lock()
        self._lock = FileLock(path)
        self._engine = engine.writer_engine(URL.create("sqlite+aiosqlite", database=str(path)), exclusive=False)

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        max_bytes: int,
        drop_oldest: bool = False,
        unpack: Mapping[str, Unpack] | None = None,
        clock: Callable[[], float],
    ) -> Self:
        """Open the file, and make it if need be. Raises StartError: it cannot be, or another bridge has it.

        `max_bytes`: it takes no more than that; then the oldest readings go (`drop_oldest`), or `append` fails.
        `unpack`: how free changes are made from what is stored of them, by their kind.
        """
        spool = cls(path, max_bytes=max_bytes, drop_oldest=drop_oldest, unpack=unpack or {}, clock=clock)
        spool._lock.acquire()
        try:
            async with spool._transaction() as connection:
                await connection.execute(_SCHEMA)
                await connection.execute(_IDS_SCHEMA)
                spool.last_id = (await connection.execute(_IDS)).scalar()
                last = (await connection.execute(_LAST)).scalar() or 0
                spool.rows, spool.bytes = (await connection.execute(_COUNT, {"last": last})).one()
                spool.oldest = (await connection.execute(_OLDEST)).scalar()
            spool._last = last
        except StorageUnavailableError as error:
            await spool.close()
            raise StartError(f"the spool {path} cannot be opened: {error}") from error
        return spool

    async def close(self) -> None:
        """Close the file and let go of its lock."""
        await self._engine.dispose()
        self._lock.release()

    @property
    def empty(self) -> bool:
        """Whether nothing waits in it."""
        return self.oldest is None

    async def note_id(self, last: int) -> None:
        """Remember from where ids are given now, for a start at which the database cannot be asked."""
        async with self._transaction() as connection:
            await connection.execute(_NOTE_IDS, {"last": last})
        self.last_id = last

    async def append(self, batches: list[Batch]) -> None:
        """Add batches at the end; when this returns they are on the disk. After an error the same batches may be
        appended again: they will be there once.

        Raises StorageUnavailableError also when there is no room below `max_bytes`.
        """
        try:
            bodies = [packing.pack(batch) for batch in batches]
        except (ValueError, TypeError, OverflowError) as error:
            # As a text that is not Unicode, which nothing that was received can hold. The database finds the one that
            # is to blame, when it is back; until then nothing passes it, and nothing is lost.
            raise StorageUnavailableError(f"what is to be spooled is no data: {error}") from error
        size = sum(map(len, bodies))
        if self.bytes + size > self._max_bytes:
            if not self._drop_oldest:
                raise StorageUnavailableError(f"the spool is full: {self.bytes:,} of {self._max_bytes:,} bytes")
            await self._make_room(size)
        now = self._clock()
        async with self._transaction() as connection:
            await connection.execute(
                _APPEND,
                [
                    {"seq": self._last + number, "at": now, "rows": batch.size, "body": body}
                    for number, (batch, body) in enumerate(zip(batches, bodies, strict=True), 1)
                ],
            )
        self._last += len(batches)
        self.bytes += size
        self.oldest = now if self.oldest is None else self.oldest
        rows = sum(batch.size for batch in batches)
        self.rows += rows
        self.appended += rows

    async def first(self) -> tuple[int, Batch]:
        """The oldest batches as one, and what `remove` is to be told when that is committed. Not when it is empty.

        What was one transaction stays one. Batches are put together as long as that makes no difference: rows come
        before free changes within a batch, so one with changes ends it.
        """
        async with self._transaction() as connection:
            sizes = (await connection.execute(_SIZES)).all()
            last, total = sizes[0]
            for seq, rows in sizes[1:]:
                if total + rows > FORWARD_ROWS:
                    break
                last = seq
                total += rows
            found = (await connection.execute(_BODIES, {"last": last})).all()
        whole = Batch()
        for seq, body in found:
            packing.unpack(body, whole, self._unpack)
            last = seq
            if whole.has_changes:
                break
        return last, whole

    async def remove(self, last: int) -> None:
        """Forget what `first` gave, after the database has committed it."""
        async with self._transaction() as connection:
            rows, size = (await connection.execute(_COUNT, {"last": last})).one()
            await connection.execute(_REMOVE, {"last": last})
            oldest = (await connection.execute(_OLDEST)).scalar()
        self.rows -= rows
        self.bytes -= size
        self.oldest = oldest
        self.forwarded += rows
        if self.empty:
            await self._shrink()

    async def _make_room(self, size: int) -> None:
        """Throw the oldest readings away, and nothing else: what follows from messages is small, and still wanted."""
        while self.bytes + size > self._max_bytes:
            async with self._transaction() as connection:
                found = (await connection.execute(_NEXT, {"after": self._emptied})).one_or_none()
                if found is None:
                    raise StorageUnavailableError(f"the spool is full, and holds no readings: {self.bytes:,} bytes")
                seq, rows, body = found
                rest, dropped = packing.without_readings(body)
                if dropped:
                    await connection.execute(_REPLACE, {"seq": seq, "rows": rows - dropped, "body": rest})
            self._emptied = seq
            self.dropped += dropped
            self.rows -= dropped
            self.bytes -= len(body) - len(rest) if dropped else 0

    async def _shrink(self) -> None:
        """Give the disk back what a long outage has taken. Not possible inside a transaction, and not necessary."""
        async with self._turn, self._engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            try:
                await driver.execute("VACUUM")
                await driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except Exception as error:
                if not is_driver_error(error):
                    raise
                await connection.invalidate()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        async with self._turn:
            try:
                async with self._engine.connect() as connection:
                    try:
                        async with connection.begin():
                            yield connection
                    except BaseException:
                        # Nobody knows what state it is in: the next one begins anew.
                        await connection.invalidate()
                        raise
            except Exception as error:
                if not is_driver_error(error):
                    raise
                raise StorageUnavailableError(f"the spool {self._path}: {wrap(error)}") from error
