"""The servers that are compared, each a real process on loopback with a port of its own."""

from __future__ import annotations

import abc
import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.bench import wire
from tests.bench.clients import HOST
from tests.servers import ServerError, free_port, program

START_TIMEOUT = 90.0
"""Seconds for a server to accept connections."""
STOP_TIMEOUT = 20.0


class _Process:
    """A child process with its output in a file, ended by its own id."""

    def __init__(self, command: list[str], log: IO[bytes], env: dict[str, str] | None = None) -> None:
        self.command = command
        self.log = log
        self._popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        self.pid = self._popen.pid

    def wait_for_port(self, port: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._popen.poll() is not None:
                raise ServerError(f"{self.command[0]} ended with {self._popen.returncode}:\n{self.tail()}")
            try:
                socket.create_connection((HOST, port), 1.0).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise ServerError(f"{self.command[0]} does not accept connections on port {port}:\n{self.tail()}")

    def tail(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text(errors="replace")[-2000:]

    def end(self, sign: signal.Signals = signal.SIGTERM) -> int:
        if self._popen.poll() is None:
            self._popen.send_signal(sign)
            try:
                self._popen.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        return self._popen.returncode


class Server(abc.ABC):
    """A server under test, with its files in a folder of its own: a context manager that starts and ends it."""

    name: str

    def __init__(self) -> None:
        self.port = free_port()
        self.pid = 0
        self._folder = Path(tempfile.mkdtemp(prefix=f"bench-{self.name}-"))
        self._folder.chmod(0o755)  # Mosquitto gives up root before it has read everything
        self._log = (self._folder / "log").open("wb")
        self._main: _Process | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._main is not None:
            print(f"{self.name}: {self._main.tail()}", file=sys.stderr)
        self._end()

    @abc.abstractmethod
    def _start(self) -> None:
        """Start the server and wait until it accepts connections."""

    def _run(self, command: list[str], env: dict[str, str] | None = None) -> None:
        self._main = _Process(command, self._log, env)
        self.pid = self._main.pid
        self._main.wait_for_port(self.port)

    def _end(self) -> None:
        if self._main is not None:
            self._main.end()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def handed_on(self, acked: int, timeout: float) -> int:
        """How many of `acked` messages have reached their end (a commit, the subscriber), waiting for the rest."""
        return acked

    def missing(self, acked: int) -> int:
        """How many of all `acked` messages the server has lost; ends the server to look."""
        return 0


class Mosquitto(Server):
    """Mosquitto with one `mosquitto_sub` on everything that devices send, which stores nothing.

    Queues are unlimited: with its default of 1,000 messages Mosquitto acknowledges what it then drops, and would be
    paid for work that it does not do. `MAX_INFLIGHT` was the fastest end to end of 20 (its default), 100, 1,000 and
    no limit.
    """

    name = "mosquitto"
    MAX_INFLIGHT = 100

    def __init__(self, *, nodelay: bool = False) -> None:
        super().__init__()
        self._nodelay = nodelay
        self._subscriber: _Process | None = None

    def _start(self) -> None:
        config = self._folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.port} {HOST}\nallow_anonymous true\npersistence false\nmax_connections -1\n"
            f"max_queued_messages 0\nmax_inflight_messages {self.MAX_INFLIGHT}\nlog_dest none\n"
            f"set_tcp_nodelay {str(self._nodelay).lower()}\n"
        )
        self._run([program("mosquitto"), "-c", str(config)])
        command = f"exec {program('mosquitto_sub')} -h {HOST} -p {self.port} -t 'devices/#' -q 1 > /dev/null"
        self._subscriber = _Process(["/bin/sh", "-c", command], self._log)
        time.sleep(0.3)  # Mosquitto has no way to ask whether somebody has subscribed

    def _end(self) -> None:
        if self._subscriber is not None:
            self._subscriber.end(signal.SIGKILL)  # its handler of SIGTERM may wait for its own lock for ever
        super()._end()

    def delivered(self) -> int:
        """Messages that `mosquitto_sub` has written, less at most one output buffer (4 KiB) of them."""
        if self._subscriber is None:
            return 0
        written = Path(f"/proc/{self._subscriber.pid}/io").read_text().split("wchar: ")[1].split()[0]
        return int(written) // (wire.PAYLOAD_BYTES + 1)

    def handed_on(self, acked: int, timeout: float) -> int:
        buffered = 4096 // (wire.PAYLOAD_BYTES + 1) + 1
        deadline = time.monotonic() + timeout
        while (delivered := self.delivered()) < acked - buffered and time.monotonic() < deadline:
            time.sleep(0.01)
        return acked if delivered >= acked - buffered else delivered


class Bridge(Server):
    """The bridge as a user starts it: SQLite with full sync, every part switched on. In a fresh data directory unless
    it is given one.

    PUBACK means committed, so all that is acknowledged has reached its end; `missing` looks into the database.
    """

    name = "bridge"

    def __init__(self, data: Path | None = None, config: str = "") -> None:
        """`data`: a data directory that is there already; `config`: more settings, as in a TOML file."""
        super().__init__()
        self._data = data or self._folder
        self._config = self._folder / "bridge.toml"
        self._config.write_text(config)

    def _start(self) -> None:
        self.http_port = free_port()
        env = {
            **os.environ,
            "BRIDGE_MQTT__PORT": str(self.port),
            "BRIDGE_HTTP__PORT": str(self.http_port),
            "BRIDGE_DATA_DIR": str(self._data),
            "BRIDGE_CONFIG": str(self._config),
        }
        self._run([sys.executable, "-m", "bridge", "serve"], env)

    def loop_lag_p99(self) -> float:
        """How late the bridge's event loop was in the last minute, in milliseconds, as it says itself."""
        return float(self.ask("summary")["loop_lag_p99_ms"])

    def ask(self, path: str) -> Any:
        """What its API answers."""
        with urllib.request.urlopen(f"http://{HOST}:{self.http_port}/api/v1/{path}", timeout=10) as answer:
            return json.load(answer)

    def missing(self, acked: int) -> int:
        if self._main is None:
            return acked
        code = self._main.end()
        if code:
            raise ServerError(f"the bridge ended with {code}:\n{self._main.tail()}")
        with contextlib.closing(sqlite3.connect(self._data / "bridge.db")) as database:
            (stored,) = database.execute("SELECT count(*) FROM telemetry").fetchone()
        return acked - int(stored)


class Acker(Server):
    """The server that only acknowledges; see tests/bench/acker.py."""

    name = "acker"

    def _start(self) -> None:
        self._run([sys.executable, "-m", "tests.bench.acker", str(self.port)])
