"""The copy of the credentials: what it takes over, what it never does, and what it knows before it is complete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.errors import CircuitOpenError, StartError, StorageUnavailableError
from bridge.registry import Credential, Entry, fits, new_credential
from bridge.storage import credentials
from bridge.storage.credentials import CredentialCopy
from bridge.storage.database import Database
from bridge.storage.registry import add_credential, put_devices, revoke_credentials
from tests.waiting import eventually

DEVICES = [f"d-{number}" for number in range(7)]


@pytest_asyncio.fixture
async def copy(tmp_path: Path) -> AsyncIterator[CredentialCopy]:
    """An empty copy."""
    opened = await CredentialCopy.open(tmp_path / "credentials.db")
    yield opened
    await opened.close()


async def issue(database: Database, device_id: str) -> tuple[Credential, bytes]:
    """A credential in the database, past the copy; and its token."""
    credential, token = new_credential(device_id, 1.0)
    assert await database.write(lambda connection: add_credential(connection, credential))
    return credential, token.encode()


@pytest_asyncio.fixture
async def tokens(database: Database) -> dict[str, bytes]:
    """The token of each device."""
    entries = [Entry(device_id) for device_id in DEVICES]
    await database.write(lambda c: put_devices(c, entries, dict.fromkeys(DEVICES, "default"), 1.0))
    return {device_id: (await issue(database, device_id))[1] for device_id in DEVICES}


async def test_it_knows_nobody_before_it_is_complete(
    copy: CredentialCopy, database: Database, tokens: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(StorageUnavailableError, match="never been copied"):
        await copy.of("d-1")
    await copy.refresh(database)
    assert fits(await copy.of("d-1"), tokens["d-1"])
    await copy.close()
    again = await CredentialCopy.open(tmp_path / "credentials.db")
    assert fits(await again.of("d-1"), tokens["d-1"])
    assert fits(await again.of("d-1"), tokens["d-2"]) is False
    assert fits(await again.of("stranger"), tokens["d-1"]) is None
    await again.close()


async def test_what_changes_past_the_bridge_is_there_after_a_refresh(
    copy: CredentialCopy, database: Database, tokens: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "PORTION", 2)
    await copy.refresh(database)
    for device_id in ("d-0", "d-6"):
        await database.write(lambda c, device_id=device_id: revoke_credentials(c, device_id))  # type: ignore[misc]  # mypy wants the default's type
    _, second = await issue(database, "d-3")
    await copy.refresh(database)
    assert [await copy.of(device_id) for device_id in ("d-0", "d-6")] == [[], []]
    assert fits(await copy.of("d-3"), second)
    for device_id in DEVICES[1:-1]:
        assert fits(await copy.of(device_id), tokens[device_id])


async def test_a_refresh_brings_nothing_back_that_is_taken_back_meanwhile(
    copy: CredentialCopy, database: Database, tokens: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever between its look at the database and its own writing that is."""
    await copy.refresh(database)
    read = database.read

    async def and_then(device_id: str, *, done: bool) -> None:
        async def slow(fn: Any) -> Any:
            found = await read(fn)
            with copy.changing(device_id):
                await copy.forget(device_id)
                if not done:
                    taking_back.enter_context(copy.changing(device_id))
            return found

        monkeypatch.setattr(database, "read", slow)
        await copy.refresh(database)
        assert await copy.of(device_id) == []

    with ExitStack() as taking_back:
        await and_then("d-1", done=True)
        await and_then("d-2", done=False)
    monkeypatch.undo()
    # Neither was taken back in the database, after all.
    await copy.refresh(database)
    assert fits(await copy.of("d-1"), tokens["d-1"])
    assert fits(await copy.of("d-2"), tokens["d-2"])


async def test_it_waits_for_a_database_that_is_away(
    copy: CredentialCopy, database: Database, tokens: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage at the time of a refresh must not end it: where it ends, the bridge does."""
    monkeypatch.setattr(credentials, "RETRY", 0.05)

    async def sick(_connection: AsyncConnection) -> None:
        raise ConnectionRefusedError("nobody there")

    with pytest.raises(CircuitOpenError):
        await database.read(sick)
    refreshing = asyncio.create_task(copy.run(database))
    await eventually(lambda: copy.complete or refreshing.done(), "the first refresh")
    assert not refreshing.done()
    assert fits(await copy.of("d-1"), tokens["d-1"])
    refreshing.cancel()
    await asyncio.wait([refreshing])


async def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "credentials.db"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StartError, match="delete it"):
        await CredentialCopy.open(path)
