"""What every measurement of the load generator needs: clocks, percentiles, and what /proc says about a process."""

from __future__ import annotations

import math
import os
import select
import sys
import time
from typing import Any

Result = dict[str, Any]
WARM_UP = 0.5
"""Seconds at the start of a rate measurement that do not count."""


def percentiles(seconds: list[float]) -> Result:
    """Nearest-rank percentiles, in milliseconds."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    ranks = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1.0))
    found = {name: ordered[math.ceil(len(ordered) * rank) - 1] * 1e3 for name, rank in ranks}
    return {"samples": len(ordered), **{name: round(value, 3) for name, value in found.items()}}


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used, in steps of one clock tick."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123 - pathlib costs more than the reading
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:  # noqa: PTH123 - as above
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wait_until_quiet(pid: int, timeout: float = 10.0) -> None:
    """Return when a process has used less than a twentieth of a core for half a second, or after `timeout` seconds.

    What a server still does for connections that were just opened must not be charged to the messages after them.
    """
    deadline = time.monotonic() + timeout
    used = cpu_seconds(pid)
    while time.monotonic() < deadline:
        time.sleep(0.5)
        before, used = used, cpu_seconds(pid)
        if used - before <= 0.025:
            return


def input_closed() -> bool:
    """Whether whoever started us has closed our standard input, which means: stop."""
    readable, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(readable) and not os.read(sys.stdin.fileno(), 1)


def say_ready() -> None:
    """Tell whoever started us that preparations are over."""
    print("ready", flush=True)


class Window:
    """The time of measurement: `seconds` after a warm-up, or until standard input is closed."""

    def __init__(self, seconds: float, until_eof: bool, warm_up: float = WARM_UP) -> None:
        self.begin = time.perf_counter() + warm_up
        self.end = self.begin + seconds
        self._until_eof = until_eof
        self._look_again = 0.0

    def over(self, now: float) -> bool:
        """Whether to stop sending."""
        if not self._until_eof:
            return now >= self.end
        if now >= self._look_again:
            self._look_again = now + 0.05
            if input_closed():
                self.end = now
                self._until_eof = False
        return not self._until_eof
