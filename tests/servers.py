"""The real servers that tests use, each on loopback with a port and a folder of its own, and what can befall them."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

HOST: Final = "127.0.0.1"
START_TIMEOUT: Final = 30.0
STOP_TIMEOUT: Final = 20.0

PORTS: Final = range(12000, 32000)
"""Below 32768, where Linux begins to choose ports for clients (net.ipv4.ip_local_port_range): otherwise a server that
is stopped and started again could find its port taken by a client's connection."""


class ServerError(Exception):
    """A server is not installed, does not start, or ended by itself."""


# Test processes side by side begin far from each other.
_next_port = itertools.count(os.getpid() * 1009)


def free_port() -> int:
    """A port that nothing listens on, and that nobody else is about to use."""
    for _ in PORTS:
        port = PORTS[next(_next_port) % len(PORTS)]
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            return port
    raise ServerError(f"no free port in {PORTS}")


def program(name: str) -> str:
    """The path of an installed program. Debian keeps servers where an ordinary PATH does not look."""
    debian = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *debian, "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        raise ServerError(f"{name} is not installed")
    return found


def unprivileged() -> str | None:
    """Whom to run a server as: PostgreSQL refuses root. None when we are not root ourselves."""
    if os.geteuid() != 0:
        return None
    names = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


class Server:
    """A child process in a folder of its own. `start` and `stop` may be called again and again, on the same port."""

    name: str

    def __init__(self) -> None:
        self.port: Final = free_port()
        self.user: Final = unprivileged()
        self.folder: Final = Path(tempfile.mkdtemp(prefix=f"test-{self.name}-"))
        self._log: Final = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        if self.user is not None:
            shutil.chown(self.folder, self.user)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def command(self) -> list[str]:
        """What to run in the foreground."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it takes connections."""
        try:
            socket.create_connection((HOST, self.port), 1.0).close()
        except OSError:
            return False
        return True

    def start(self) -> None:
        """Start and wait until it takes connections."""
        if self.running:
            return
        with self._log.open("ab") as log:
            self._process = process = subprocess.Popen(
                self.command(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=self.user
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self.ready():
            if process.poll() is not None:
                raise ServerError(f"{self.name} ended with {process.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ServerError(f"{self.name} takes no connections on port {self.port}:\n{self.tail()}")
            time.sleep(0.02)

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> None:
        """End it in order and wait."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(sign)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.wait()
            raise ServerError(f"{self.name} did not stop:\n{self.tail()}") from error

    def kill(self) -> None:
        """End it and all its children with SIGKILL, as a power cut would."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        family = self._family(process)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # ended by itself when it saw its parent gone
                member.kill()
        process.wait()
        psutil.wait_procs(family, timeout=STOP_TIMEOUT)

    def pause(self) -> None:
        """Leave every connection open and answer nothing."""
        assert self._process is not None
        for member in self._family(self._process):
            member.suspend()

    def resume(self) -> None:
        """Go on after `pause`."""
        assert self._process is not None
        for member in self._family(self._process):
            member.resume()

    def tail(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-2000:]

    def remove(self) -> None:
        """End it, whatever its state, and delete its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        parent = psutil.Process(process.pid)
        # The parent first: it must not see its children die and start new ones.
        return [parent, *parent.children(recursive=True)]


class Postgres(Server):
    """PostgreSQL with the empty database `bridge`. `durable` False does without fsync: to kill the server then still
    loses nothing, only the machine's own end would. `timescaledb`: the server loads it."""

    name = "postgres"

    def __init__(self, *, durable: bool = True, timescaledb: bool = False) -> None:
        super().__init__()
        self._durable = durable
        self.timescaledb = timescaledb
        self._data = self.folder / "data"
        subprocess.run(
            [program("initdb"), "-D", self._data, "-U", "bridge", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"],
            cwd=self.folder,
            user=self.user,
            check=True,
            capture_output=True,
        )
        self.create("bridge")

    def command(self) -> list[str]:
        """PostgreSQL in the foreground."""
        settings = {
            "port": self.port,
            "listen_addresses": HOST,
            "unix_socket_directories": self.folder,
            "fsync": "on" if self._durable else "off",
            "max_connections": 50,
            "log_min_messages": "warning",
        }
        if self.timescaledb:
            settings["shared_preload_libraries"] = "timescaledb"
            # Its scheduler sits in every database, and a database that somebody uses is no template.
            settings["timescaledb.max_background_workers"] = 0
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return [program("postgres"), "-D", str(self._data), *options]

    def ready(self) -> bool:
        """The last line of the pid file says so: a connection alone may still be told to come back later."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        process = self._process
        return process is not None and len(lines) > 7 and lines[0] == str(process.pid) and lines[7].strip() == "ready"

    def stop(self, sign: signal.Signals = signal.SIGINT) -> None:
        """A fast shutdown: sessions are ended, nothing is lost."""
        super().stop(sign)

    def create(self, database: str) -> None:
        """Make an empty database while the server is down."""
        subprocess.run(
            [program("postgres"), "--single", "-D", self._data, "postgres"],
            input=f"CREATE DATABASE {database}\n".encode(),
            cwd=self.folder,
            user=self.user,
            check=True,
            capture_output=True,
        )

    @property
    def url(self) -> str:
        """SQLAlchemy's URL of the database `bridge`."""
        return self.url_of("bridge")

    def url_of(self, database: str) -> str:
        """SQLAlchemy's URL of one database."""
        return f"postgresql+asyncpg://bridge@{HOST}:{self.port}/{database}"


class Mosquitto(Server):
    """Mosquitto, open to everybody on loopback."""

    name = "mosquitto"

    def __init__(self, config: str = "") -> None:
        super().__init__()
        self._config = self.folder / "mosquitto.conf"
        self._config.write_text(f"listener {self.port} {HOST}\nallow_anonymous true\n{config}\n")

    def command(self) -> list[str]:
        """Mosquitto in the foreground."""
        return [program("mosquitto"), "-c", str(self._config)]
