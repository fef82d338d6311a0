"""A migrated database per test, on each of the two kinds."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from bridge.receipts import Ledger
from bridge.storage import migrate
from bridge.storage.database import Database
from bridge.storage.writer import Writer
from tests.integration.storage.witness import PostgresWitness, SqliteWitness, Witness
from tests.servers import Postgres

_numbers = itertools.count(1)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def kind(request: pytest.FixtureRequest) -> str:
    """Which database."""
    name: str = request.param
    return name


@pytest_asyncio.fixture
async def empty_url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables."""
    if kind == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/bridge.db"
    server: Postgres = request.getfixturevalue("postgres")
    return await create(server, "template1")


@pytest_asyncio.fixture
async def url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a migrated database."""
    if kind == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path}/bridge.db"
        await migrate.upgrade(url)
        return url
    server: Postgres = request.getfixturevalue("postgres")
    # Migrated once, then copied. Does nothing when it is done already.
    await migrate.upgrade(server.url)
    return await create(server, "bridge")


async def create(server: Postgres, template: str) -> str:
    """A new database on `server`, a copy of `template`."""
    name = f"test_{next(_numbers)}"
    connection = await asyncpg.connect(plain(server.url_of("postgres")))
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    await connection.close()
    return server.url_of(name)


def plain(url: str) -> str:
    """The URL as asyncpg itself reads it."""
    return url.replace("postgresql+asyncpg", "postgresql")


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
