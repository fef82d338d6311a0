"""P1 at the system calls: the disk has confirmed the commit before the acknowledgement is written to the socket.

`kill -9` alone cannot show this: the kernel keeps what a killed process has written, but loses it with the power.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.clients import RawClient
from tests.acceptance.process import PYTHON_M_BRIDGE, BridgeProcess
from tests.waiting import until

CALLS = "read,recvfrom,recvmsg,fsync,fdatasync,write,writev,sendto,sendmsg"
PUBACK = r"@\2\0\1"
"""40 02 00 01 as strace prints it."""


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[BridgeProcess]:
    """A bridge whose system calls are written to `trace` in its folder. -D: the process is the bridge itself."""
    strace = ("strace", "-D", "-f", "-y", "-qq", "-s", "256", "-e", f"trace={CALLS}", "-o", str(tmp_path / "trace"))
    bridge = BridgeProcess(tmp_path / "bridge", command=(*strace, *PYTHON_M_BRIDGE)).start(timeout=60)
    yield bridge
    if bridge.running:
        bridge.kill()


def synced(lines: list[str], log: str) -> Iterator[int]:
    """The lines at which a sync of that log file has returned without an error."""
    waiting: set[str] = set()
    for number, line in enumerate(lines):
        thread = line.split()[0]
        if re.search(rf"\b(fsync|fdatasync)\(\d+<[^>]*{log}>", line):
            waiting.add(thread)
        if thread in waiting and re.search(r"sync(\(| resumed>).*= 0$", line):
            waiting.remove(thread)
            yield number


def synced_in_between(trace: Path, message: str, log: str) -> bool:
    """Whether a sync of that log came between the message and its acknowledgement."""
    lines = trace.read_text(errors="replace").splitlines()
    received = next(n for n, line in enumerate(lines) if re.search(rf"\b(read|recv\w+)\b.*{message}", line))
    acknowledged = next(n for n, line in enumerate(lines) if n > received and PUBACK in line)
    print("\n".join(lines[received : acknowledged + 1]))
    return any(received < n < acknowledged for n in synced(lines, log))


@pytest.mark.strace
def test_synced_before_acknowledged(traced: BridgeProcess, tmp_path: Path) -> None:
    with RawClient(traced, "fridge-7") as client:
        client.publish(b"devices/fridge-7/telemetry", b'{"id": "trace-me", "temperature": 4.2}')
        assert client.outcome() == "acknowledged"
    traced.settled_ledger()
    assert traced.terminate() == 0
    assert synced_in_between(tmp_path / "trace", "trace-me", r"bridge\.db-wal")


@pytest.mark.strace
def test_the_spool_is_synced_before_acknowledged(traced: BridgeProcess, tmp_path: Path) -> None:
    """The same for the spool, while another program has the database for itself."""
    other = sqlite3.connect(traced.data / "bridge.db", isolation_level=None)
    with RawClient(traced, "fridge-7") as client:
        other.execute("BEGIN IMMEDIATE")
        client.publish(b"devices/fridge-7/telemetry", b'{"id": "trace-me", "temperature": 4.2}')
        assert client.outcome() == "acknowledged"
        other.execute("COMMIT")
    other.close()
    until(lambda: traced.stored_ids() == {"trace-me"}, "the row in the database")
    assert traced.terminate() == 0
    assert synced_in_between(tmp_path / "trace", "trace-me", r"spool\.db-wal")
