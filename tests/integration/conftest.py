"""A migrated database per test, on each of the two kinds, and the server for one of them."""

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
from tests.servers import Postgres

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def ledgers_hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """At the end of every test here nothing has disappeared unseen, in whichever ledger it was counted."""
    opened: list[Ledger] = []
    original = Ledger.__init__

    def opened_here(self: Ledger) -> None:
        original(self)
        opened.append(self)

    monkeypatch.setattr(Ledger, "__init__", opened_here)
    yield
    assert [ledger.as_dict() for ledger in opened if ledger.difference or ledger.in_flight < 0] == []


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """One PostgreSQL server for all tests. A test that stops it must start it again."""
    with Postgres(durable=False, timescaledb=request.config.getoption("--timescaledb")) as server:
        yield server


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


async def create(server: Postgres, template: str) -> str:
    """A new database on `server`, a copy of `template`."""
    name = f"test_{next(_numbers)}"
    connection = await asyncpg.connect(plain(server.url_of("postgres")))
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    finally:
        await connection.close()
    return server.url_of(name)


def plain(url: str) -> str:
    """The URL as asyncpg itself reads it."""
    return url.replace("postgresql+asyncpg", "postgresql")
