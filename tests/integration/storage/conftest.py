"""What the storage tests share: an open database, a running writer, a ledger, a witness."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from bridge.receipts import Ledger
from tests.integration.conftest import plain
from tests.integration.storage.witness import PostgresWitness, SqliteWitness, Witness


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Tests of TimescaleDB belong to `make timescale` alone: what CI installs does not have it."""
    left_out = collection_path.name == "test_hypertable.py" and not config.getoption("--timescaledb")
    return True if left_out else None


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
