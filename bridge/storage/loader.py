"""Reading by key, everything that is asked for at the same time in one query."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.storage.database import Database

K = TypeVar("K")
V = TypeVar("V")

Query = Callable[[AsyncConnection, list[K]], Awaitable[Mapping[K, V]]]
"""Reads many keys at once; those that are not there are left out. Waits for nothing but its connection."""


class Loader(Generic[K, V]):
    """While a query is under way further requests wait for the next one: a thousand cold devices that speak at once
    cost a few queries."""

    def __init__(self, database: Database, query: Query[K, V]) -> None:
        self.database = database
        self._query = query
        self._wanted: dict[K, list[asyncio.Future[V | None]]] = {}
        self._task: asyncio.Task[None] | None = None
        self.queries = 0

    async def load(self, key: K) -> V | None:
        """What is stored under `key`, None if nothing is. Raises StorageUnavailableError."""
        return await self.request(key)

    def request(self, key: K) -> asyncio.Future[V | None]:
        """The same for those who cannot wait."""
        future: asyncio.Future[V | None] = asyncio.get_running_loop().create_future()
        self._wanted.setdefault(key, []).append(future)
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

    async def _answer(self, wanted: dict[K, list[asyncio.Future[V | None]]]) -> None:
        self.queries += 1
        try:
            found = await self.database.look_up(lambda connection: self._query(connection, list(wanted)))
        except Exception as error:  # noqa: BLE001 - it is raised where the result is waited for
            for futures in wanted.values():
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
        except BaseException:
            _cancel(wanted)
            raise
        else:
            for key, futures in wanted.items():
                for future in futures:
                    if not future.done():
                        future.set_result(found.get(key))


def _cancel(wanted: dict[K, list[asyncio.Future[V | None]]]) -> None:
    for futures in wanted.values():
        for future in futures:
            future.cancel()
