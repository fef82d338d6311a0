"""A copy of the devices' credentials on the local disk, which is asked while the database cannot be.

Without it a device with a token that drops while the database is away could not come back. A credential that is taken
back leaves the copy first, and a new one comes into it last: the copy never lets in whom the database would not. What
is changed in the database past this bridge is in the copy after the next `refresh`.

An SQLite file of its own. It may be deleted while no bridge runs: it is made anew.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar, final

import structlog
from sqlalchemy import ColumnElement, and_, bindparam, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateIndex, CreateTable

from bridge.errors import StartError, StorageError, StorageUnavailableError
from bridge.registry import Credential
from bridge.storage.database import Database
from bridge.storage.loader import Loader
from bridge.storage.registry import load_credentials, revoke_credentials
from bridge.storage.tables import credentials

log = structlog.get_logger(__name__)

T = TypeVar("T")

REFRESH_EVERY: Final = 3600.0
"""Seconds from one look at all of the database's credentials to the next."""
RETRY: Final = 10.0
"""Seconds to the next try when that has failed."""
PORTION: Final = 500
"""Credentials that are compared at a time."""
PAUSE: Final = 3.0
"""Times as long as a portion has taken, until the next one: nobody waits for it, and a million are many."""
_COMPLETE: Final = 1
"""The file's `user_version` once it has held all that the database has."""
_COLUMNS: Final = tuple(credentials.c[name] for name in Credential._fields)
_DELETE: Final = delete(credentials).where(credentials.c.credential_id == bindparam("id"))


@final
class CredentialCopy:
    """Made by `open`. It takes no memory for those who are in it."""

    def __init__(self, local: Database) -> None:
        self.complete = False
        """Whether it has ever held all that the database has: before that it knows nobody for sure."""
        self._local = local
        self._loader: Loader[str, list[Credential]] = Loader(local, load_credentials)
        self._changing: Counter[str] = Counter()
        """Devices whose credentials are being changed."""
        self._changed: set[str] | None = None
        """Devices whose credentials have changed since the portion was read that is being compared; None when none
        is."""

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open the file, and make it if need be. Raises StartError."""
        try:
            local = await Database.open(f"sqlite+aiosqlite:///{path}", 1)
        except StartError as error:
            raise StartError(f"{error}. It is a copy: if it is damaged, delete it, and it is made anew") from error
        copy = cls(local)
        try:
            copy.complete = await copy._write(_prepare) == _COMPLETE
        except (StorageError, StorageUnavailableError) as error:
            await local.close()
            raise StartError(f"the copy of the credentials, {path}, cannot be opened: {error}") from error
        return copy

    async def close(self) -> None:
        """Close the file."""
        await self._local.close()

    async def of(self, device_id: str) -> list[Credential]:
        """A device's credentials. Raises StorageUnavailableError if the copy is not complete or cannot be read."""
        if not self.complete:
            raise StorageUnavailableError("the database is away, and its credentials have never been copied")
        return await self._loader.load(device_id) or []

    # ------------------------------------------------------------------ kept up to date

    @contextmanager
    def changing(self, device_id: str) -> Iterator[None]:
        """While this lasts a device's credentials change, here and in the database: what a refresh has read of them
        may be older than the change, and does not count."""
        self._changing[device_id] += 1
        try:
            yield
        finally:
            self._changing[device_id] -= 1
            if not self._changing[device_id]:
                del self._changing[device_id]
            if self._changed is not None:
                self._changed.add(device_id)

    async def add(self, credential: Credential) -> None:
        """A credential that the database has now. If it cannot be written the refresh will."""
        try:
            await self._write(lambda connection: connection.execute(insert(credentials), credential._asdict()))
        except StorageUnavailableError as error:
            log.warning("a new credential is not copied yet", device=credential.device_id, error=str(error))

    async def forget(self, device_id: str, credential_id: str | None = None) -> None:
        """A device's credential, or all of them, are about to be taken back. Raises StorageUnavailableError: then they
        must not be."""
        await self._write(lambda connection: revoke_credentials(connection, device_id, credential_id))

    async def run(self, database: Database) -> None:
        """Have what changes in the database past this bridge, once an hour."""
        while True:
            try:
                await self.refresh(database)
            except (StorageError, StorageUnavailableError) as error:
                log.warning("the credentials could not be copied; trying again", error=str(error))
                await asyncio.sleep(RETRY)
            else:
                await asyncio.sleep(REFRESH_EVERY)

    async def refresh(self, database: Database) -> None:
        """Compare all credentials with those of the database, and write what differs. Raises StorageUnavailableError or
        StorageError."""
        loop = asyncio.get_running_loop()
        after = ""
        try:
            while True:
                began = loop.time()
                self._changed = set()
                found = await database.read(partial(_portion, after=after))
                last = found[-1].credential_id if len(found) == PORTION else None
                await self._write(partial(self._replace, found, after, last))
                if last is None:
                    break
                after = last
                await asyncio.sleep(PAUSE * (loop.time() - began))
        finally:
            self._changed = None
        await self._write(lambda connection: connection.exec_driver_sql(f"PRAGMA user_version = {_COMPLETE}"))
        self.complete = True

    async def _replace(
        self, found: list[Credential], after: str, last: str | None, connection: AsyncConnection
    ) -> None:
        """Have `found` be all there is from `after` to `last`."""
        wanted = {credential.credential_id: credential for credential in found}
        rows = await connection.execute(select(*_COLUMNS).where(_between(after, last)))
        here = {row.credential_id: Credential(*row) for row in rows}
        unsure = self._changing.keys() | (self._changed or set())
        differing = [
            credential
            for credential in {**here, **wanted}.values()
            if here.get(credential.credential_id) != wanted.get(credential.credential_id)
            and credential.device_id not in unsure
        ]
        if differing:
            await connection.execute(_DELETE, [{"id": credential.credential_id} for credential in differing])
        new = [credential._asdict() for credential in differing if credential.credential_id in wanted]
        if new:
            await connection.execute(insert(credentials), new)

    async def _write(self, fn: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        return await self._local.attempt(lambda: self._local.transact(fn))


async def _prepare(connection: AsyncConnection) -> int:
    await connection.execute(CreateTable(credentials, if_not_exists=True))
    for index in credentials.indexes:
        await connection.execute(CreateIndex(index, if_not_exists=True))
    version: int = (await connection.exec_driver_sql("PRAGMA user_version")).scalar_one()
    return version


async def _portion(connection: AsyncConnection, after: str) -> list[Credential]:
    # Ids are hexadecimal and of one length: every collation has them in the same order.
    query = select(*_COLUMNS).where(_between(after, None)).order_by(credentials.c.credential_id).limit(PORTION)
    return [Credential(*row) for row in await connection.execute(query)]


def _between(after: str, last: str | None) -> ColumnElement[bool]:
    behind = credentials.c.credential_id > after
    return behind if last is None else and_(behind, credentials.c.credential_id <= last)
