"""`mqtt-bridge backup` under load and `restore`: what was acknowledged before the backup began is in it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from bridge.errors import StorageError
from bridge.storage import backup
from tests.acceptance.clients import Load, mosquitto_pub
from tests.acceptance.conftest import MakeBridge
from tests.acceptance.process import BridgeProcess
from tests.waiting import until


def ids(path: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return {row[0] for row in database.execute("SELECT message_id FROM telemetry")}


def test_a_backup_under_load_has_what_was_acknowledged_and_can_be_restored(bridge: BridgeProcess) -> None:
    copy = bridge.folder / "copy.db"
    with Load(bridge, "backed-up") as load:
        until(lambda: len(load.acknowledged) > 200, "some acknowledged messages")
        before = load.acknowledged.copy()
        done = bridge.run("backup", str(copy))
        assert done.returncode == 0, done.stderr
        after = len(load.acknowledged)
        until(lambda: len(load.acknowledged) > after + 100, "messages that are acknowledged after the backup")
    assert "checked" in done.stdout
    assert before <= ids(copy)
    refused = bridge.run("restore", str(copy))
    assert refused.returncode == 1
    assert "in use by" in refused.stderr
    assert bridge.terminate() == 0
    restored = bridge.run("restore", str(copy))
    assert restored.returncode == 0, restored.stderr
    assert (bridge.data / "bridge.db.before-restore-1").is_file()
    bridge.start()
    assert ids(bridge.data / "bridge.db") == ids(copy)
    mosquitto_pub(bridge, "devices/d/telemetry", '{"id": "new"}', "-q", "1")
    assert "new" in bridge.stored_ids()


def test_what_is_no_backup_is_not_restored(make_bridge: MakeBridge, tmp_path: Path) -> None:
    bridge = make_bridge()
    bridge.folder.mkdir()
    for name, content in (("text", b"no database"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        refused = bridge.run("restore", str(tmp_path / name))
        assert refused.returncode == 1
        assert not (bridge.data / "bridge.db").exists()


def test_a_backup_overwrites_nothing_and_leaves_nothing_half(tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    target.touch()
    with pytest.raises(StorageError, match="there already"):
        backup.backup(tmp_path / "bridge.db", target)
    with pytest.raises(StorageError, match="no database"):
        backup.backup(tmp_path / "bridge.db", tmp_path / "other.db")
    (tmp_path / "bridge.db").write_bytes(b"SQLite format 3\0" + b"rubbish" * 1000)
    with pytest.raises(StorageError):
        backup.backup(tmp_path / "bridge.db", tmp_path / "other.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bridge.db", "copy.db"]
