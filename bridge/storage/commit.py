"""Batches on their way into the database: all of them in one transaction, once, whatever answers are lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, final

import structlog
from sqlalchemy import BigInteger, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.errors import StorageUnavailableError
from bridge.storage.batch import Batch
from bridge.storage.database import Database
from bridge.storage.faults import is_driver_error, is_retriable, wrap

log = structlog.get_logger(__name__)

_SET_MARK: Final = text(
    "INSERT INTO commit_marks (id, batch) VALUES (1, :batch)"
    " ON CONFLICT (id) DO UPDATE SET batch = excluded.batch WHERE commit_marks.batch <> excluded.batch"
).bindparams(bindparam("batch", type_=BigInteger))


@final
class Commit:
    """Made for batches that are committed together, in their order; `attempt` is called until it returns.

    When the answer to a COMMIT is lost nobody knows whether it took place, and the next attempt must not do it again.
    Rows carry their ids and are inserted ON CONFLICT DO NOTHING. Free statements cannot be told apart like that, so
    where there are any a mark is written into `commit_marks` before them: if it is there already, all of it is
    committed. (The old session may still be committing; then the write of the mark waits for it.)
    """

    def __init__(
        self,
        database: Database,
        batches: Sequence[Batch],
        clock: Callable[[], float],
        topic_of: Callable[[str, str], str],
        next_id: Callable[[], int],
    ) -> None:
        self.parts: dict[Batch, list[Batch]] = {batch: [batch] for batch in batches}
        """Of each batch itself, or the pieces that it had to be taken apart into: as they stood at the last COMMIT."""
        self.spent: dict[Batch, float] = {}
        """Seconds that each batch took without its share of BEGIN and COMMIT, in the last attempt."""
        self.attempts = 0
        self._database = database
        self._clock = clock
        self._topic_of = topic_of
        self._next_id = next_id
        self._mark = next_id()
        self._isolating = False
        self._letter_ids: list[int] = []
        """For what is refused. Taken beforehand: on SQLite the transaction is not on the event loop."""

    async def attempt(self) -> None:
        """Try once. Raises StorageUnavailableError if it may go better later."""
        self.attempts += 1
        try:
            await self._database.attempt(lambda: self._database.transact(self._store))
        except StorageUnavailableError:
            raise
        except Exception as error:
            if self._isolating:
                # What is refused now is not in the batch: no message is to blame, none may be acknowledged.
                raise StorageUnavailableError(f"the database refuses to commit anything: {error}") from error
            self._isolating = True
            self._letter_ids = [self._next_id() for batch in self.parts for _ in batch.order]
            await self.attempt()

    def leave_out(self, batch: Batch) -> None:
        """Try the others alone from now on: what becomes of this one is seen to elsewhere."""
        del self.parts[batch]

    async def _store(self, connection: AsyncConnection) -> None:
        marked = self._isolating or any(batch.has_changes for batch in self.parts)
        if marked and not await self._set_mark(connection):
            return
        letter_ids = iter(self._letter_ids)
        for batch in self.parts:
            began = time.perf_counter()
            if self._isolating:
                self.parts[batch] = await self._isolate(connection, batch, letter_ids)
            else:
                await batch.store(connection)
                self.parts[batch] = [batch]
            self.spent[batch] = time.perf_counter() - began

    async def _set_mark(self, connection: AsyncConnection) -> bool:
        """Whether all of it has still to be committed."""
        return (await connection.execute(_SET_MARK, {"batch": self._mark})).rowcount == 1

    async def _isolate(self, connection: AsyncConnection, batch: Batch, ids: Iterator[int]) -> list[Batch]:
        """Find what the database refuses by halving, and store the rest."""
        try:
            async with connection.begin_nested():
                await batch.store(connection)
        except Exception as error:
            if is_retriable(error):
                raise
            if len(batch.order) > 1:
                first, second = batch.halves()
                return [*await self._isolate(connection, first, ids), *await self._isolate(connection, second, ids)]
            batch.refusal = wrap(error) if is_driver_error(error) else error
            await self._bury(connection, batch, next(ids))
        return [batch]

    async def _bury(self, connection: AsyncConnection, batch: Batch, row_id: int) -> None:
        letter = batch.letter(self._clock(), self._topic_of)
        if letter is None:
            return
        try:
            async with connection.begin_nested():
                await batch.bury(connection, letter, row_id)
        except Exception as error:
            if is_retriable(error):
                raise
            log.exception("a dead letter cannot be stored; its message is not acknowledged")
        else:
            batch.buried = True
