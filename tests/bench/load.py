"""A light MQTT load generator: one process, one mode, one JSON line of results on standard output.

`python -m tests.bench.load MODE --port PORT …`. A mode that prepares something first writes the line `ready` and
begins at once; a mode without an end (`--until-eof`) runs until its standard input is closed. Times are seconds,
latencies milliseconds. `generator_busy` is the share of a core that the generator itself used:
near 1 it is what was measured. `acked` counts every acknowledged message of the process, for comparison with what the
server says it has stored.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Sequence

from tests.bench import latency, population, throughput
from tests.bench.clients import raise_file_limit
from tests.bench.measure import Result

MODES: dict[str, Callable[[argparse.Namespace], Result]] = {
    "bursts": throughput.bursts,
    "closed": throughput.closed,
    "commands": latency.commands,
    "connects": population.connects,
    "memory": population.memory,
    "noisy": throughput.noisy,
    "paced": latency.paced,
    "probe": latency.probe,
    "storm": population.storm,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one mode and print its result."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.load", description=__doc__)
    parser.add_argument("mode", choices=sorted(MODES))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=50, help="connections, that is devices")
    parser.add_argument("--burst", type=int, default=100, help="messages per burst")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure")
    parser.add_argument("--rate", type=float, default=0.0, help="messages per second in all; 0: as fast as possible")
    parser.add_argument("--window", type=int, default=100, help="connections being opened at one time")
    parser.add_argument("--outstanding", type=int, default=0, help="messages under way at one time; 0: one each")
    parser.add_argument("--senders", type=int, default=0, help="how many of the connections send; 0: all")
    parser.add_argument("--listen", action="store_true", help="devices subscribe to their command topic")
    parser.add_argument("--direct", action="store_true", help="the operator speaks to devices itself (plain broker)")
    parser.add_argument("--pid", type=int, default=0, help="the server's process, to read its CPU time or memory")
    parser.add_argument("--until-eof", action="store_true", help="run until standard input is closed")
    args = parser.parse_args(argv)
    raise_file_limit()
    gc.disable()  # a collection in the generator would look like a slow server
    begin = time.perf_counter() - time.process_time()  # as if this process had been busy so far
    result = MODES[args.mode](args)
    result["generator_busy"] = time.process_time() / (time.perf_counter() - begin)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
