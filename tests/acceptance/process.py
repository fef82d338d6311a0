"""The real command as a process of its own, and what a user sees of it: HTTP, the database file, the log."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.servers import free_port
from tests.waiting import until

ROOT = Path(__file__).parents[2]
PYTHON_M_BRIDGE = (sys.executable, "-m", "bridge")
STOP_WITHIN = 10.0
"""Seconds that SIGTERM may take: a promise of `serve`."""

Row = tuple[Any, ...]


def clean_environment() -> dict[str, str]:
    """This process's environment without the settings of a bridge, and as most users have it: Python keeps what it has
    compiled. A start that compiles everything anew takes three times as long."""
    strange = ("BRIDGE_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(strange)}


class BridgeProcess:
    """One bridge: `start` and `kill` it as often as needed, its ports and its data stay the same."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        command: Sequence[str] = PYTHON_M_BRIDGE,
    ) -> None:
        """`settings` are BRIDGE_… variables; `command` starts `mqtt-bridge`."""
        self.folder = folder
        self.working_directory = folder
        self.data = folder / "data"
        self.log = folder / "output.log"
        self.mqtt_port = free_port()
        self.http_port = free_port()
        self.command = list(command)
        self.token: str | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.ended = True
        """Whether the process has ended as the test wanted, or was never started."""
        self.environment = clean_environment() | {
            "BRIDGE_MQTT__PORT": str(self.mqtt_port),
            "BRIDGE_HTTP__PORT": str(self.http_port),
            "BRIDGE_DATA_DIR": str(self.data),
            "BRIDGE_URL": self.url(""),
            # Output is read by tests: not wrapped to a terminal's width, and written at once.
            "COLUMNS": "200",
            "PYTHONUNBUFFERED": "1",
            **(settings or {}),
        }
        if self.command[-3:] == list(PYTHON_M_BRIDGE):
            # The bridge beside these tests, wherever an editable install may point to.
            self.environment["PYTHONPATH"] = str(ROOT)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def launch(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `serve` and return at once."""
        assert not self.running, "it is running already"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ended = False
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, "serve", *arguments],
                cwd=self.working_directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self.process

    def start(self, *arguments: str, timeout: float = 90.0) -> BridgeProcess:
        """Start `serve` and wait until it is ready."""
        process = self.launch(*arguments)

        def ready() -> bool:
            assert process.poll() is None, f"serve ended with {process.returncode}:\n{self.output()}"
            return self.status("/readyz") == 200

        until(ready, "the bridge to be ready", timeout)
        return self

    def refuse(self, *arguments: str) -> int:
        """Start `serve`, which must end by itself, and return its exit code."""
        code = self.launch(*arguments).wait(60)
        self.ended = True
        return code

    def finish(self) -> None:
        """End what still runs at the end of a test: its ledger must hold, with nothing in flight, and SIGTERM must
        end it with exit code 0. A process that ended without being told to is a failure."""
        if self.ended:
            return
        assert self.process is not None
        assert self.process.poll() is None, f"serve ended by itself, with {self.process.returncode}"
        self.settled_ledger()
        assert self.terminate() == 0

    def terminate(self) -> int:
        """SIGTERM; the exit code, within the promised time."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """The exit code of a process that was told to end."""
        assert self.process is not None
        try:
            code = self.process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not stopped within {STOP_WITHIN:g} s:\n{self.output()}") from None
        self.ended = True
        return code

    def kill(self) -> None:
        """`kill -9`: nothing gets a chance to tidy up."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.ended = True

    def output(self) -> str:
        """Everything the process has written to the terminal so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def run(self, *arguments: str, typed: str = "", timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run another command of `mqtt-bridge` against this bridge; `typed` is its standard input."""
        return subprocess.run(
            [*self.command, *arguments],
            cwd=self.working_directory,
            env=self.environment,
            input=typed,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http_port}{path}"

    def status(self, path: str) -> int:
        """The HTTP status of GET `path`; 0 while nobody answers."""
        try:
            with urllib.request.urlopen(self.url(path), timeout=5) as response:  # noqa: S310 - our own loopback URL
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def text(self, path: str) -> str:
        """What is at `path`."""
        with urllib.request.urlopen(self.url(path), timeout=10) as response:  # noqa: S310 - our own loopback URL
            body: bytes = response.read()
        return body.decode()

    def get(self, path: str) -> Any:
        """The JSON document at `path`."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        request = urllib.request.Request(self.url(path), headers=headers)  # noqa: S310 - our own loopback URL
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - our own loopback URL
            return json.load(response)

    def post(self, path: str, body: Any) -> Any:
        """The JSON document that `path` answers to `body`."""
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self.token}"} if self.token else {}
        )
        request = urllib.request.Request(self.url(path), json.dumps(body).encode(), headers)  # noqa: S310 - our own loopback URL
        with urllib.request.urlopen(request, timeout=15) as response:  # noqa: S310 - our own loopback URL
            return json.load(response)

    def online(self) -> list[str]:
        """The ids of the devices that are connected."""
        devices = self.get("/api/v1/devices?limit=1000")["devices"]
        return [device["device_id"] for device in devices if device["status"] == "online"]

    def children(self) -> list[int]:
        """The ids of the processes that the bridge has started."""
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(child) for task in tasks for child in task.read_text().split()]

    def rows(self, query: str, *parameters: object) -> list[Row]:
        """What the database file holds, read past the bridge."""
        connection = sqlite3.connect(f"file:{self.data / 'bridge.db'}?mode=ro", uri=True, timeout=5)
        try:
            return connection.execute(query, parameters).fetchall()
        finally:
            connection.close()

    def stored_ids(self) -> set[str]:
        """The message ids in the table of readings; fails if one is there twice."""
        ids = [row[0] for row in self.rows("SELECT message_id FROM telemetry WHERE message_id IS NOT NULL")]
        assert len(ids) == len(set(ids)), "stored twice"
        return set(ids)

    def settled_ledger(self) -> dict[str, Any]:
        """The ledger once nothing is in flight; fails unless its difference is zero."""

        def settled() -> dict[str, Any] | None:
            ledger: dict[str, Any] = self.get("/api/v1/ledger")
            assert ledger["difference"] == 0, ledger
            return ledger if ledger["in_flight"] == 0 else None

        return until(settled, "every received message to be settled") or {}
