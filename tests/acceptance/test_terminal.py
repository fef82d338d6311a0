"""The bridge in a terminal: the live summary, Ctrl-C, and the processes that must not stay behind."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.acceptance.conftest import MakeBridge
from tests.acceptance.process import BridgeProcess, clean_environment
from tests.servers import free_port
from tests.waiting import until

ROOT = Path(__file__).parents[2]


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_ctrl_c_ends_the_bridge_and_its_devices(simulated: BridgeProcess) -> None:
    """As in a terminal: everything in the foreground gets the SIGINT."""
    assert simulated.process is not None
    children = simulated.children()
    assert children
    for pid in [*children, simulated.process.pid]:
        os.kill(pid, signal.SIGINT)
    assert simulated.wait() == 0
    until(lambda: gone(children), "the simulated devices to end")
    assert "Traceback" not in simulated.output()


def test_simulated_devices_do_not_outlive_a_killed_bridge(simulated: BridgeProcess) -> None:
    children = simulated.children()
    assert children
    simulated.kill()
    until(lambda: gone(children), "the simulated devices to end")


def test_without_a_terminal_the_summary_is_plain_lines(make_bridge: MakeBridge) -> None:
    bridge = make_bridge().start("--simulate", "2", "--summary")
    until(lambda: "committed" in bridge.output(), "a line of the summary", 30)
    assert "\x1b[" not in bridge.output()


class Terminal:
    """A program in a terminal of its own, as a user sees it; a context manager."""

    def __init__(self, program: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._pid, self._screen = pty.fork()
        if self._pid == 0:
            os.chdir(folder)
            os.execvpe(program[0], program, environment)
        self._bytes = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._code: int | None = None

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.exit_code() is None:
            os.killpg(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        self._reader.join()
        os.close(self._screen)

    def _read(self) -> None:
        try:
            while more := os.read(self._screen, 65536):
                self._bytes.extend(more)
        except OSError:  # EIO is how Linux says that the last process has left the terminal
            return

    def text(self) -> str:
        """Everything that was ever written to the screen, without colours and cursor movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._bytes.decode(errors="replace"))

    def press_ctrl_c(self) -> None:
        os.write(self._screen, b"\x03")

    def exit_code(self) -> int | None:
        """The program's exit code; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the working tree with this environment in it, as `make` leaves it: nothing is left to install."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "data", ".*_cache", "__pycache__"))
    programs = copy / ".venv" / "bin"
    programs.mkdir(parents=True)
    script = programs / "mqtt-bridge"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bridge "$@"\n')
    script.chmod(0o755)
    for stamp in (".python", ".runtime"):
        (copy / ".venv" / stamp).touch()
    return copy


def test_make_run(checkout: Path) -> None:
    """The live summary, what to type in a second terminal, and Ctrl-C without an error from make."""
    # Without what a `make test ARGS=…` above this test hands down.
    handed_down = ("MAKE", "ARGS")
    environment = {name: value for name, value in clean_environment().items() if not name.startswith(handed_down)} | {
        "BRIDGE_MQTT__PORT": str(free_port()),
        "BRIDGE_HTTP__PORT": str(free_port()),
        "TERM": "xterm",
        "COLUMNS": "160",
        "LINES": "50",
    }
    with Terminal(["make", "run", "DEVICES=3"], checkout, environment) as terminal:

        def shows(*patterns: str) -> bool:
            assert terminal.exit_code() is None, terminal.text()
            return all(re.search(pattern, terminal.text()) for pattern in patterns)

        until(lambda: shows("mosquitto_pub", "mqtt-bridge send", "committed"), "the summary", 30)
        until(lambda: shows(r"(?i)online\W+3\b|\b3\W+online"), "three devices online", 30)
        terminal.press_ctrl_c()
        until(lambda: terminal.exit_code() is not None, "the end after Ctrl-C", 15)
        # make always ends by the SIGINT that it got itself; an error of its own or the bridge's would be 2.
        assert terminal.exit_code() == -signal.SIGINT, terminal.text()
        assert "***" not in terminal.text(), "make complains"
        assert "Traceback" not in terminal.text()
