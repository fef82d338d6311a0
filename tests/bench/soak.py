"""Ten thousand devices for ten minutes: does the bridge's memory stay flat? `python -m tests.bench.soak [--seconds N]`.

The devices are those of `mqtt-bridge simulate`, in a process of their own. Every few seconds a line is printed: the
bridge's resident memory, what it received and committed per second, its ledger, its event loop's lag. The beginning
is warm-up and does not count. The exit code says whether memory was flat, the ledger held and every device stayed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from tests.bench.clients import HOST, raise_file_limit
from tests.bench.measure import resident_bytes
from tests.bench.servers import Bridge

WARM_UP: Final = 1 / 3
"""The share of the run that does not count: every device gets its first state."""
WARM_ROWS: Final = 120_000
"""And at least so many committed messages do not count: until then SQLite fills its page cache of 32 MiB, about 330
bytes with each."""
FEWEST: Final = 5
"""Samples that must be left to tell."""
GROWTH: Final = 0.03
"""What memory may grow from the end of the warm-up to the end of the run, as a straight line through all samples, as a
share of what it was. Ten minutes with a leak of one small object per message are far above it."""
CONNECT_WITHIN: Final = 90.0
"""Seconds that all devices get to connect before the clock starts."""


class Sample(NamedTuple):
    """One look at the bridge, `at` seconds after the start."""

    at: float
    resident: int
    online: int
    ledger: dict[str, Any]
    lag_ms: float


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through `points` with the least squares; 0 for fewer than two."""
    count = len(points)
    if count < 2:
        return 0.0
    middle = sum(x for x, _ in points) / count
    level = sum(y for _, y in points) / count
    spread = sum((x - middle) ** 2 for x, _ in points)
    return sum((x - middle) * (y - level) for x, y in points) / spread if spread else 0.0


def warm(samples: Sequence[Sample]) -> list[Sample]:
    """The samples after the warm-up."""
    return [s for s in samples[int(len(samples) * WARM_UP) :] if s.ledger["committed"] >= WARM_ROWS]


def problems(samples: Sequence[Sample], devices: int) -> list[str]:
    """What is wrong with a run; nothing if memory was flat, the ledger held and all devices were there."""
    counted = warm(samples)
    if len(counted) < FEWEST:
        return [f"too short to tell: the first {WARM_ROWS:,} messages are warm-up"]
    found = []
    grown = slope([(s.at, s.resident) for s in counted]) * (counted[-1].at - counted[0].at) / counted[0].resident
    if grown > GROWTH:
        found.append(f"memory has grown by {grown:.1%} since the warm-up; {GROWTH:.0%} are allowed")
    if any(s.ledger["difference"] for s in samples):
        found.append("the ledger does not hold")
    if (fewest := min(s.online for s in counted)) < devices:
        found.append(f"at one time only {fewest} of {devices} devices were online")
    if counted[-1].ledger["committed"] <= counted[0].ledger["committed"]:
        found.append("nothing was committed")
    return found


def look(bridge: Bridge, since: float) -> Sample:
    """Ask the bridge how it is."""
    with urllib.request.urlopen(f"http://{HOST}:{bridge.http_port}/api/v1/summary", timeout=30) as answer:
        summary = json.load(answer)
    return Sample(
        time.monotonic() - since,
        resident_bytes(bridge.pid),
        summary["devices"].get("online", 0),
        summary["ledger"],
        summary["loop_lag_p99_ms"],
    )


@contextlib.contextmanager
def fleet(bridge: Bridge, devices: int, rate: float) -> Iterator[None]:
    """Simulated devices, as long as the context lasts. They end by themselves if this process dies."""
    command = [sys.executable, "-m", "bridge", "simulate", "--port", str(bridge.port), "--until-stdin-closes"]
    command += ["--devices", str(devices), "--rate", f"{rate:g}"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def show(sample: Sample, before: Sample) -> None:
    """Print a line of the table."""
    seconds = sample.at - before.at
    rates = [(sample.ledger[what] - before.ledger[what]) / seconds for what in ("received", "committed")]
    print(
        f"| {sample.at:.0f} | {sample.resident / 1e6:.1f} | {sample.online:,} | {rates[0]:,.0f} | {rates[1]:,.0f}"
        f" | {sample.ledger['committed']:,} | {sample.ledger['in_flight']} | {sample.ledger['difference']}"
        f" | {sample.lag_ms:.0f} |",
        flush=True,
    )


def run(devices: int, rate: float, seconds: float, every: float) -> list[str]:
    """Run it, print the table, and return what is wrong."""
    with Bridge() as bridge, fleet(bridge, devices, rate):
        deadline = time.monotonic() + CONNECT_WITHIN
        while look(bridge, deadline).online < devices:
            if time.monotonic() > deadline:
                return [f"not all of {devices} devices were online after {CONNECT_WITHIN:g} s"]
            time.sleep(1.0)
        began = time.monotonic()
        samples = [look(bridge, began)]
        print(
            "| s | resident MB | online | received/s | committed/s | committed | in flight | difference | lag p99 ms |"
        )
        print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
        while samples[-1].at < seconds:
            time.sleep(max(0.1, began + len(samples) * every - time.monotonic()))
            samples.append(look(bridge, began))
            show(samples[-1], samples[-2])
    counted = warm(samples)
    per_minute = slope([(s.at, s.resident) for s in counted]) * 60
    print(f"\n{devices:,} devices; since the warm-up memory grows by {per_minute / 1e6:+.2f} MB a minute", flush=True)
    return problems(samples, devices)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=0.1, help="readings per second of each device")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--every", type=float, default=0.0, help="seconds between two lines; a thirtieth of the run")
    args = parser.parse_args(argv)
    if args.devices + 500 > raise_file_limit():
        parser.error(f"the open-file limit is too low for {args.devices} devices")
    found = run(args.devices, args.rate, args.seconds, args.every or max(2.0, args.seconds / 30))
    print("memory is flat, the ledger holds, all devices stayed" if not found else "PROBLEM: " + "; ".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
