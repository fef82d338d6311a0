"""A bridge as a newcomer has it, and one that asks for tokens. On SQLite: what differs between the databases is in the
room of storage, and is tested there on both."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bridge.storage import migrate
from tests.integration.http.house import House, house


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with all tables, which is copied: to migrate takes longer than most tests here."""
    path = tmp_path_factory.mktemp("migrated") / "bridge.db"
    asyncio.run(migrate.upgrade(f"sqlite+aiosqlite:///{path}"))
    return path


@pytest.fixture
def url(migrated: Path, tmp_path: Path) -> str:
    """The URL of a migrated database."""
    shutil.copy(migrated, tmp_path / "bridge.db")
    return f"sqlite+aiosqlite:///{tmp_path}/bridge.db"


@pytest_asyncio.fixture
async def open_house(url: str, tmp_path: Path) -> AsyncIterator[House]:
    """On loopback, no token needed."""
    async with house(url, tmp_path) as opened:
        yield opened


@pytest_asyncio.fixture
async def locked_house(url: str, tmp_path: Path) -> AsyncIterator[House]:
    """Every caller needs a token."""
    async with house(url, tmp_path, require_token=True) as opened:
        yield opened
