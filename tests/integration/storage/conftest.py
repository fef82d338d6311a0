"""What the storage tests share: an open database, a running writer, a ledger, a witness."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest
import pytest_asyncio

from bridge.receipts import Ledger
from bridge.storage.database import Database
from bridge.storage.writer import Writer
from tests.integration.conftest import plain
from tests.integration.storage.witness import PostgresWitness, SqliteWitness, Witness


@pytest_asyncio.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """The open database."""
    opened = await Database.open(url)
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def writer(database: Database) -> AsyncIterator[Writer]:
    """A running writer."""
    started = Writer(database)
    await started.start()
    yield started
    await started.stop(5.0)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """A ledger that must hold at the end."""
    counts = Ledger()
    yield counts
    assert counts.difference == 0
    assert counts.in_flight == 0


@pytest_asyncio.fixture
async def witness(url: str, kind: str) -> AsyncIterator[Witness]:
    """A connection of another program to the same database."""
    made: Witness = SqliteWitness(url) if kind == "sqlite" else PostgresWitness(await asyncpg.connect(plain(url)))
    yield made
    await made.close()
