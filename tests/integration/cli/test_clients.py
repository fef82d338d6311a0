"""`tail` and `simulate` as processes, on a broker that is not ours: what they print and how Ctrl-C ends them."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import HOST, Mosquitto
from tests.waiting import until

ROOT = Path(__file__).parents[3]
WITHIN = 60.0
"""Seconds; what has not come by then does not come."""


@pytest.fixture(scope="module")
def mosquitto() -> Iterator[Mosquitto]:
    with Mosquitto() as server:
        yield server


class Command:
    """A running `mqtt-bridge`; its lines can be waited for."""

    def __init__(self, *arguments: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bridge", *arguments],
            env=environment | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)

    def line(self, containing: str) -> str:
        """The next line that contains a text; those before it are passed over."""
        while True:
            try:
                line = self.lines.get(timeout=WITHIN)
            except queue.Empty:
                raise AssertionError(f"no line with {containing!r}; ended with {self.process.poll()}") from None
            if containing in line:
                return line

    def interrupt(self) -> int:
        """As Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(WITHIN)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def begin(*arguments: str) -> Command:
        started.append(Command(*arguments))
        return started[-1]

    yield begin
    for command in started:
        command.close()


def publish(mosquitto: Mosquitto, topic: str, payload: str) -> None:
    subprocess.run(
        ["mosquitto_pub", "-h", HOST, "-p", str(mosquitto.port), "-t", topic, "-s", "-r"],
        input=payload.encode(),
        timeout=WITHIN,
        check=True,
    )


@pytest.mark.mosquitto
def test_tail_shows_what_passes(mosquitto: Mosquitto, start: Callable[..., Command]) -> None:
    # Retained: it arrives whenever `tail` is ready.
    publish(mosquitto, "devices/fridge-7/telemetry", '{"door": "\x1b[31mopen\n"}')
    publish(mosquitto, "devices/fridge-8/telemetry", "not for us")
    publish(mosquitto, "house/big", "x" * 5_000)
    tail = start("tail", "--port", str(mosquitto.port), "--device", "fridge-7")
    line = tail.line("fridge-7")
    assert line.endswith('devices/fridge-7/telemetry {"door": "\\x1b[31mopen\\n"}\n')
    assert tail.interrupt() == 130
    assert tail.lines.empty(), "no traceback, and nothing of other devices"

    publish(mosquitto, "devices/fridge-7/error", "of another kind")
    kinds = start("tail", "--port", str(mosquitto.port), "--kind", "error", "--kind", "presence")
    assert "devices/fridge-7/error" in kinds.line("devices/"), "the first line that comes"
    assert kinds.interrupt() == 130

    other = start("tail", "--port", str(mosquitto.port), "--topic", "house/#")
    assert other.line("house/big").endswith("xx… (5,000 bytes)\n")


def test_tail_without_a_broker_says_where_it_looked(start: Callable[..., Command]) -> None:
    tail = start("tail", "--port", "1")
    assert "broker 127.0.0.1:1: " in tail.line("mqtt-bridge")
    assert tail.process.wait(WITHIN) == 1


@pytest.mark.mosquitto
def test_simulate_reports_at_ctrl_c(mosquitto: Mosquitto, start: Callable[..., Command]) -> None:
    simulate = start("simulate", "--devices", "3", "--rate", "20", "--port", str(mosquitto.port))
    assert "p99" in simulate.line("3/3 connected")
    assert simulate.interrupt() == 0
    assert "p50" in simulate.line("publish → acknowledged")
    assert simulate.line("connects").split()[1] == "3"


@pytest.mark.mosquitto
def test_simulate_for_some_seconds(mosquitto: Mosquitto, start: Callable[..., Command]) -> None:
    simulate = start(
        "simulate", "--devices", "2", "--rate", "20", "--seconds", "1.5", "--qos", "2", "--port", str(mosquitto.port)
    )
    assert int(simulate.line("acknowledged").split()[1]) > 0
    assert simulate.process.wait(WITHIN) == 0


def test_simulate_without_a_broker_fails(start: Callable[..., Command]) -> None:
    simulate = start("simulate", "--devices", "2", "--seconds", "0.5", "--port", "1")
    assert "127.0.0.1:1" in simulate.line("no device could connect")
    assert simulate.process.wait(WITHIN) == 1


@pytest.mark.mosquitto
def test_a_child_of_serve_ends_with_its_standard_input(mosquitto: Mosquitto, start: Callable[..., Command]) -> None:
    before = len(connected(mosquitto))
    child = start("simulate", "--devices", "2", "--port", str(mosquitto.port), "--until-stdin-closes")
    until(lambda: len(connected(mosquitto)) == before + 2, "two devices", WITHIN)
    assert child.process.stdin is not None
    child.process.stdin.close()
    assert child.process.wait(WITHIN) == 0
    child._reader.join()
    assert child.lines.empty(), "it says nothing"


def connected(mosquitto: Mosquitto) -> list[str]:
    """The broker's side of every open connection to it."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return [f[1] for f in fields if f[3] == "01" and int(f[1].rpartition(":")[2], 16) == mosquitto.port]
