"""Look-ups by id that are asked one at a time and answered together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.storage.database import Database

T = TypeVar("T")


class Loader(Generic[T]):
    """Loads what belongs to device ids, all those asked for together in one query.

    While a query is under way further requests wait for the next one: a thousand cold devices that speak at once cost
    a few queries.
    """

    def __init__(
        self, database: Database, query: Callable[[AsyncConnection, list[str]], Awaitable[Mapping[str, T]]]
    ) -> None:
        """`query` finds what belongs to some ids."""
        self._database = database
        self._query = query
        self._wanted: dict[str, list[asyncio.Future[T | None]]] = {}
        self._task: asyncio.Task[None] | None = None
        self.queries = 0

    async def load(self, device_id: str) -> T | None:
        """What is stored, None if there is nothing. Raises StorageUnavailableError."""
        return await self.request(device_id)

    def request(self, device_id: str) -> asyncio.Future[T | None]:
        """The same for those who cannot wait."""
        future: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()
        self._wanted.setdefault(device_id, []).append(future)
        if self._task is None:
            # A task starts in the next turn of the loop, so it finds all requests of this one.
            self._task = asyncio.create_task(self._run(), name="loader")
        return future

    async def _run(self) -> None:
        try:
            while self._wanted:
                wanted, self._wanted = self._wanted, {}
                await self._answer(wanted)
        finally:
            self._task = None
            _cancel(self._wanted)

    async def _answer(self, wanted: dict[str, list[asyncio.Future[T | None]]]) -> None:
        self.queries += 1
        ids = list(wanted)
        try:
            found = await self._database.read(lambda connection: self._query(connection, ids))
        except Exception as error:  # noqa: BLE001 - it is raised where the result is waited for
            for futures in wanted.values():
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
        except BaseException:
            _cancel(wanted)
            raise
        else:
            for device_id, futures in wanted.items():
                for future in futures:
                    if not future.done():
                        future.set_result(found.get(device_id))


def _cancel(wanted: dict[str, list[asyncio.Future[T | None]]]) -> None:
    for futures in wanted.values():
        for future in futures:
            future.cancel()
