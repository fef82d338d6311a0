"""One batch on its way into the database: all of it in one transaction, once, whatever answers are lost."""

from __future__ import annotations

from collections.abc import Callable
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
    """Made for one batch; `attempt` is called until it returns.

    When the answer to a COMMIT is lost nobody knows whether it took place, and the next attempt must not do it again.
    Rows carry their ids and are inserted ON CONFLICT DO NOTHING. Free statements cannot be told apart like that, so
    a batch that holds any writes its mark into `commit_marks` before them: if the mark is there already, the batch is
    committed. (The old session may still be committing; then the write of the mark waits for it.)
    """

    def __init__(
        self,
        database: Database,
        batch: Batch,
        clock: Callable[[], float],
        topic_of: Callable[[str, str], str],
        next_id: Callable[[], int],
    ) -> None:
        self.parts = [batch]
        """The batch, or the pieces that it had to be taken apart into: as they stood at the last COMMIT."""
        self.attempts = 0
        self._database = database
        self._batch = batch
        self._clock = clock
        self._topic_of = topic_of
        self._next_id = next_id
        self._mark = next_id()
        self._isolating = False

    async def attempt(self) -> None:
        """Try once. Raises StorageUnavailableError if it may go better later."""
        self.attempts += 1
        try:
            await self._database.attempt(self._transaction)
        except StorageUnavailableError:
            raise
        except Exception as error:
            if self._isolating:
                # What is refused now is not in the batch: no message is to blame, none may be acknowledged.
                raise StorageUnavailableError(f"the database refuses to commit anything: {error}") from error
            self._isolating = True
            await self.attempt()

    async def _transaction(self) -> None:
        batch = self._batch
        async with self._database.transaction() as connection:
            if (self._isolating or batch.has_changes) and not await self._set_mark(connection):
                return
            if self._isolating:
                parts = await self._isolate(connection, batch)
            else:
                await batch.store(connection)
                parts = [batch]
            self.parts = parts

    async def _set_mark(self, connection: AsyncConnection) -> bool:
        """Whether the batch has still to be committed."""
        return (await connection.execute(_SET_MARK, {"batch": self._mark})).rowcount == 1

    async def _isolate(self, connection: AsyncConnection, batch: Batch) -> list[Batch]:
        """Find what the database refuses by halving, and store the rest."""
        try:
            async with connection.begin_nested():
                await batch.store(connection)
        except Exception as error:
            if is_retriable(error):
                raise
            if len(batch.order) > 1:
                first, second = batch.halves()
                return [*await self._isolate(connection, first), *await self._isolate(connection, second)]
            batch.refusal = wrap(error) if is_driver_error(error) else error
            await self._bury(connection, batch)
        return [batch]

    async def _bury(self, connection: AsyncConnection, batch: Batch) -> None:
        letter = batch.letter(self._clock(), self._topic_of)
        if letter is None:
            return
        try:
            async with connection.begin_nested():
                await batch.bury(connection, letter, self._next_id())
        except Exception as error:
            if is_retriable(error):
                raise
            log.exception("a dead letter cannot be stored; its message is not acknowledged")
        else:
            batch.buried = True
