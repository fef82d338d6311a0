"""Measure the bridge beside Mosquitto in one run: `python -m tests.bench.run [names…] [--json FILE] [--quick]`.

Prints the table as Markdown and writes every run to a JSON file. The exit code says whether everything could be
measured and no acknowledged message was lost; whether a goal is met is only printed, because a clock on a shared
machine proves nothing.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.clients import raise_file_limit
from tests.bench.scenarios import DEVICES, ONLY_WHEN_NAMED, SCENARIOS, Bench, LoadError
from tests.bench.table import Row, markdown
from tests.servers import ServerError, program

PEERS = ("bridge", "mosquitto")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    said = subprocess.run([program("mosquitto"), "-h"], capture_output=True, text=True, check=False).stdout
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cpu": models[0].partition(":")[2].strip() if models else "unknown",
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "mosquitto": said.partition("\n")[0],
        "load_average_before": os.getloadavg()[0],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks that were named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.run", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        choices=[*SCENARIOS, []],
        help=f"which benchmarks; if none is named, all but {' and '.join(sorted(ONLY_WHEN_NAMED))}, which take minutes",
    )
    parser.add_argument(
        "--json", type=Path, default=Path("bench.json"), help="write all runs to this file (bench.json)"
    )
    parser.add_argument("--quick", action="store_true", help="one short round each: a sanity check, no figures")
    parser.add_argument("--peer", action="append", choices=PEERS, help="measure only this server")
    parser.add_argument("--devices", type=int, help="devices where there are many (9000; 2000 with --quick)")
    args = parser.parse_args(argv)
    args.devices = args.devices or (2000 if args.quick else DEVICES)
    if args.devices + 500 > raise_file_limit():
        parser.error(f"the open-file limit is too low for {args.devices} devices")
    bench = Bench(peers=tuple(args.peer or PEERS), devices=args.devices)
    if args.quick:
        bench.rounds, bench.seconds = 1, 0.8
    about = machine()
    rows: list[Row] = []
    begin = time.monotonic()
    for name in args.names or [name for name in SCENARIOS if name not in ONLY_WHEN_NAMED]:
        print(f"{time.monotonic() - begin:5.0f} s  {name} …", file=sys.stderr, flush=True)
        try:
            rows += SCENARIOS[name](bench)
        except (LoadError, ServerError, subprocess.TimeoutExpired) as error:
            bench.problems.append(f"{name}: {error}")
    print(markdown(rows))
    cores = f"{about['cpu']}, {about['cores']} cores, Python {about['python']}"
    print(f"\n{cores}, {about['mosquitto']}, {about['date'][:10]}")
    for problem in bench.problems:
        print(f"PROBLEM: {problem}")
    report = {"machine": about, "rows": [row.as_dict() for row in rows], "problems": bench.problems}
    args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if bench.problems else 0


if __name__ == "__main__":
    sys.exit(main())
