"""The fleet of devices as the tests hold it: start it, cut it, stop it, and read what was acknowledged to it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from bisect import bisect_right
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.acceptance.process import ROOT
from tests.waiting import until

STOP_WITHIN = 60.0
"""Seconds until everything that was sent is acknowledged, when nothing is wrong any more."""

_numbers = itertools.count(1)


class Sent(NamedTuple):
    """What the devices say at their end."""

    sent: int
    unacknowledged: int
    connects: int
    disordered: int


class Fleet:
    """Devices in another process; a context manager. `rate`: messages per second of all together, 0 for as many as are
    acknowledged."""

    def __init__(self, port: int, folder: Path, *, devices: int = 20, rate: float = 1_000.0, window: int = 50) -> None:
        number = next(_numbers)
        self._log = folder / f"acknowledged-{number}.log"
        self._log.touch()
        self._read_to = 0
        self._half_line = ""
        self._acknowledged: list[str] = []
        self._times: list[float] = []
        options = {"--devices": devices, "--rate": rate, "--window": window, "--prefix": f"fleet{number}"}
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "tests.faults.devices", str(port), str(self._log),
                *(part for name, value in options.items() for part in (name, str(value))),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    # ------------------------------------------------------------------ what is done to it

    def drop(self) -> None:
        """Cut every connection; each device comes back at once."""
        self._order("drop")

    def stop(self, within: float = STOP_WITHIN) -> Sent:
        """Send nothing new, and wait until everything is acknowledged."""
        self._order("stop")
        output, _ = self._process.communicate(timeout=within)
        return Sent(**json.loads(output))

    def quit(self) -> Sent:
        """End at once, whatever is not acknowledged."""
        self._order("quit")
        output, _ = self._process.communicate(timeout=STOP_WITHIN)
        return Sent(**json.loads(output))

    def _order(self, word: str) -> None:
        assert self._process.stdin is not None
        assert self._process.poll() is None, "the devices have ended"
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    # ------------------------------------------------------------------ what it has written down

    def acknowledged(self) -> list[str]:
        """The ids of all messages that were acknowledged so far."""
        with self._log.open() as log:
            log.seek(self._read_to)
            more = self._half_line + log.read()
            self._read_to = log.tell()
        *lines, self._half_line = more.split("\n")
        for line in lines:
            at, _, message_id = line.partition(" ")
            self._times.append(float(at))
            self._acknowledged.append(message_id)
        return self._acknowledged

    def wait_for(self, count: int, timeout: float = 30.0) -> None:
        """Return when so many more messages are acknowledged."""
        wanted = len(self.acknowledged()) + count
        until(lambda: len(self.acknowledged()) >= wanted, f"{count} acknowledgements", timeout)

    def back_after(self, moment: float, timeout: float = 60.0) -> float:
        """Seconds from `moment` (monotonic) to the first acknowledgement after it."""

        def first() -> float | None:
            self.acknowledged()
            after = bisect_right(self._times, moment)
            return self._times[after] if after < len(self._times) else None

        found = until(first, "an acknowledgement", timeout)
        assert found is not None
        return found - moment

    def longest_silence(self) -> float:
        """The longest time in seconds between two acknowledgements."""
        self.acknowledged()
        return max((after - before for before, after in itertools.pairwise(self._times)), default=0.0)


def now() -> float:
    """The clock of the devices' log, which all processes of a machine share."""
    return time.monotonic()
