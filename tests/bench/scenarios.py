"""The benchmarks: each starts its servers, loads them in turns, and returns rows of the table."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.bench.devices import pages_of_devices
from tests.bench.sent import pages_of_commands
from tests.bench.servers import Acker, Bridge, Mosquitto, Server
from tests.bench.table import Goal, Row

DEVICES = 9000
HANDED_ON_TIMEOUT = 10.0
"""Seconds that a server gets after the last PUBACK to hand on what it has acknowledged."""


GENERATOR_LIMIT = 0.9
"""The share of a core above which the generator may be what limits a rate."""


class LoadError(Exception):
    """The load generator failed."""


class Load:
    """One process of the load generator."""

    def __init__(self, server: Server, mode: str, **options: float | bool) -> None:
        command = [sys.executable, "-m", "tests.bench.load", mode, "--port", str(server.port)]
        for name, value in options.items():
            flag = "--" + name.replace("_", "-")
            if value is True:
                command.append(flag)
            elif value is not False:
                command += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
        self._what = f"{mode} against {server.name}"
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.began = time.perf_counter()

    def wait_until_ready(self) -> Load:
        """Return when the measurement begins."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != "ready\n":
            self._process.wait()
            raise LoadError(f"{self._what}: ended with {self._process.returncode} before it was ready")
        self.began = time.perf_counter()
        return self

    def result(self, timeout: float = 90.0) -> dict[str, Any]:
        """Close its input, which ends a mode that has no end of its own, and wait for the result."""
        try:
            out, _ = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise LoadError(f"{self._what}: no result after {timeout:g} s") from None
        if self._process.returncode:
            raise LoadError(f"{self._what}: ended with {self._process.returncode}")
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result


@dataclass
class Bench:
    """How long to measure, whom, and what was found wrong on the way."""

    rounds: int = 3
    seconds: float = 2.5
    devices: int = DEVICES
    peers: tuple[str, ...] = ("bridge", "mosquitto")
    problems: list[str] = field(default_factory=list)
    acked: dict[int, int] = field(default_factory=dict)
    """Acknowledged messages per server (by process id): to be compared with its books at the end."""

    @contextmanager
    def servers(self, *, prompt: bool = False) -> Iterator[list[Server]]:
        """Start all peers; at the end every acknowledged message must be in their books.

        `prompt`: answers matter more than rates, so Mosquitto is run with TCP_NODELAY. Without it, its default, it is
        the faster one at rates and waits 20 ms and more before it sends a second small packet.
        """
        with ExitStack() as stack:
            running: list[Server] = []
            for name in self.peers:
                server: Server = Bridge() if name == "bridge" else Mosquitto(nodelay=prompt)
                running.append(stack.enter_context(server))
            yield running
            for server in running:
                lost = server.missing(self.acked.get(server.pid, 0))
                if lost > 0:
                    self.problems.append(f"{server.name} acknowledged {lost} messages that it does not have")

    def run(self, server: Server, mode: str, **options: float | bool) -> dict[str, Any]:
        """Run one mode to its end."""
        return self.count(server, Load(server, mode, **options).result())

    def count(self, server: Server, result: dict[str, Any]) -> dict[str, Any]:
        """Enter a result's acknowledged messages in the books."""
        self.acked[server.pid] = self.acked.get(server.pid, 0) + int(result["acked"])
        return result


def _watch_generator(row: Row, server: Server, result: dict[str, Any]) -> None:
    """Say so when the generator may have been the bottleneck: a rate is then at least what the table says."""
    if result["generator_busy"] > GENERATOR_LIMIT:
        row.notes.add(f"the generator was saturated against {server.name}, which may be faster than this")


def _rate(bench: Bench, mode: str, name: str, goal: float, **options: float | bool) -> list[Row]:
    handed = Row(f"{name}: committed, or handed to mosquitto_sub", "msg/s", Goal(goal, at_least=True, ratio=True))
    acked = Row(f"{name}: acknowledged (Mosquitto is still holding part of it)", "msg/s")
    with bench.servers() as servers:
        for _ in range(bench.rounds):
            for server in servers:
                before = bench.acked.get(server.pid, 0)
                load = Load(server, mode, seconds=bench.seconds, **options).wait_until_ready()
                result = bench.count(server, load.result())
                arrived = server.handed_on(bench.acked[server.pid], HANDED_ON_TIMEOUT)
                took = time.perf_counter() - load.began
                handed.side(server.name).append((arrived - before) / took)
                acked.side(server.name).append(result["rate"])
                _watch_generator(acked, server, result)
    return [handed, acked]


def bursts(bench: Bench) -> list[Row]:
    """50 connections in bursts of 100."""
    return _rate(bench, "bursts", "50 connections, bursts of 100", 3.0, connections=50, burst=100)


def single(bench: Bench) -> list[Row]:
    """1,000 connections, one message at a time each."""
    return _rate(bench, "closed", "1,000 connections, one at a time", 1.0, connections=1000)


def connects(bench: Bench) -> list[Row]:
    """Connect and subscribe all devices."""
    row = Row(f"connect + subscribe, {bench.devices:,} devices", "1/s", Goal(0.8, at_least=True, ratio=True))
    with bench.servers() as servers:
        for _ in range(bench.rounds):
            for server in servers:
                result = bench.run(server, "connects", connections=bench.devices)
                row.side(server.name).append(result["rate"])
                _watch_generator(row, server, result)
    return [row]


def memory(bench: Bench) -> list[Row]:
    """Memory per device: fresh servers, because freed memory would hide what a device costs."""
    row = Row(f"memory per connected, subscribed, awake device ({bench.devices:,})", "KiB", Goal(8.0))
    with bench.servers() as servers:
        for server in servers:
            result = bench.run(server, "memory", connections=bench.devices, pid=server.pid)
            row.side(server.name).append(result["bytes_per_device"] / 1024)
    return [row]


def cpu(bench: Bench) -> list[Row]:
    """CPU per message with few and with many subscribed devices, always 100 messages under way.

    Once the same 100 devices send while the others only listen, which shows what the server's own tables cost; and
    once all send in turns, which adds what the kernel pays for sockets that have left the CPU's caches. A server
    that only acknowledges shows that part alone.

    What a message costs with 100 devices differs by a quarter from one time to the next, on one server within one
    minute. So each measurement with many devices stands between two with few, and is compared with their mean.
    """
    base = Row("CPU per message, 100 subscribed devices", "µs")
    listening = Row(f"the same while {bench.devices:,} are subscribed", "x", Goal(1.1))
    turns = Row(f"the same with {bench.devices:,} devices sending in turns", "x", Goal(1.1))
    floor = Row("of that, a server that only acknowledges", "x", peer_name="acker")
    many: tuple[tuple[Row, dict[str, int]], ...] = (
        (listening, {"connections": bench.devices, "senders": 100}),
        (turns, {"connections": bench.devices}),
    )

    def used(server: Server, **options: int) -> float:
        result = bench.run(
            server, "closed", outstanding=100, listen=True, pid=server.pid, seconds=bench.seconds / 2, **options
        )
        server.handed_on(bench.acked[server.pid], HANDED_ON_TIMEOUT)  # not into the next measurement
        return float(result["cpu_us_per_message"])

    with bench.servers() as servers, Acker() as acker:
        for server in (*servers, acker):
            before = used(server, connections=100)
            # Six pairs have a median that holds; more would take longer than all else.
            for _ in range(2 * bench.rounds if server is not acker else 1):
                for row, options in many:
                    with_many = used(server, **options)
                    after = used(server, connections=100)
                    ratio = with_many / ((before + after) / 2)
                    before = after
                    if server is not acker:
                        row.side(server.name).append(ratio)
                        base.side(server.name).append(after)
                    elif row is turns:
                        floor.peer.append(ratio)
    return [base, listening, turns, floor]


def noisy(bench: Bench) -> list[Row]:
    """1,000 devices once a second, without and with one that sends as fast as it can."""
    quiet50 = Row("publish to PUBACK, 1,000 devices once a second: p50", "ms")
    quiet = Row("the same: p99", "ms")
    beside = Row("the same beside one device at full speed: p99", "ms")
    growth = Row("p99 beside the noisy device against p99 without", "x", Goal(2.0))
    speed = Row("the noisy device itself", "msg/s")
    with bench.servers(prompt=True) as servers:
        for _ in range(bench.rounds):
            for server in servers:
                alone = bench.run(server, "paced", connections=1000, seconds=bench.seconds)["latency"]
                load = Load(server, "noisy", until_eof=True).wait_until_ready()
                both = bench.run(server, "paced", connections=1000, seconds=bench.seconds)["latency"]
                speed.side(server.name).append(bench.count(server, load.result())["rate"])
                server.handed_on(bench.acked[server.pid], HANDED_ON_TIMEOUT)
                quiet50.side(server.name).append(alone["p50"])
                quiet.side(server.name).append(alone["p99"])
                beside.side(server.name).append(both["p99"])
                growth.side(server.name).append(both["p99"] / alone["p99"])
    return [quiet50, quiet, beside, growth, speed]


def commands(bench: Bench) -> list[Row]:
    """The operator's round trip while ingest runs at half of what the same server has just reached."""
    rows = {name: Row(f"command and its answer during half-maximum ingest: {name}", "ms") for name in ("p50", "p99")}
    rows["p99"].goal = Goal(50.0)
    rows["p99"].notes.add("Mosquitto's operator speaks to the device directly: nothing is stored")
    with bench.servers(prompt=True) as servers:
        for server in servers:
            most = bench.run(server, "bursts", seconds=bench.seconds)["rate"]
            server.handed_on(bench.acked[server.pid], HANDED_ON_TIMEOUT)
            for _ in range(max(1, bench.rounds - 1)):
                ingest = Load(server, "bursts", rate=most / 2, until_eof=True).wait_until_ready()
                result = bench.run(
                    server, "commands", connections=100, rate=50, seconds=2 * bench.seconds,
                    direct=server.name != "bridge",
                )  # fmt: skip
                bench.count(server, ingest.result())
                for name, row in rows.items():
                    row.side(server.name).append(result["latency"].get(name, float("inf")))
                for what in ("failed", "lost"):
                    if result[what]:
                        bench.problems.append(f"{server.name}: {result[what]} of {result['commands']} commands {what}")
    return list(rows.values())


def storm(bench: Bench) -> list[Row]:
    """All devices vanish and come back at once."""
    took = Row(f"{bench.devices:,} devices drop and come back at once: all served after", "s", Goal(10.0))
    bystander_waits = Row("a bystander's PINGREQ to PINGRESP meanwhile: p99", "ms", Goal(250.0))
    lag = Row("the bridge's event-loop lag in that minute, as it says itself: p99", "ms", Goal(250.0))
    with bench.servers(prompt=True) as servers:
        for server in servers:
            load = Load(server, "storm", connections=bench.devices, seconds=30.0).wait_until_ready()
            bystander = Load(server, "probe")
            result = bench.count(server, load.result())
            bystander_waits.side(server.name).append(bystander.result()["latency"].get("p99", float("inf")))
            if isinstance(server, Bridge):
                lag.bridge.append(server.loop_lag_p99())
            took.side(server.name).append(result["seconds"])
            if result["served"] < bench.devices:
                bench.problems.append(f"{server.name} served {result['served']} devices again after 30 s")
    return [took, bystander_waits, lag]


def ceiling(bench: Bench) -> list[Row]:
    """What the generator itself can reach, against a server that only acknowledges."""
    rows = []
    with Acker() as server:
        for mode, name, connections in (
            ("bursts", "generator's ceiling, bursts", 50),
            ("closed", "generator's ceiling, 1,000 connections one at a time", 1000),
            ("connects", "generator's ceiling, connect + subscribe", bench.devices),
        ):
            result = Load(server, mode, seconds=bench.seconds, connections=connections).result()
            rows.append(Row(name, "1/s", peer=[result["rate"]], peer_name="acker"))
    return rows


def module(name: str) -> Callable[[Bench], list[Row]]:
    """A benchmark of a part, in a process of its own, which prints its rows as a JSON list of `Row` fields."""

    def run(bench: Bench) -> list[Row]:
        command = [sys.executable, "-m", f"tests.bench.{name}", "--seconds", f"{bench.seconds:g}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=600)
        if done.returncode:
            raise LoadError(f"{name}: ended with {done.returncode}")
        found = json.loads(done.stdout.splitlines()[-1])
        return [
            Row(
                **{
                    **row,
                    "goal": Goal(**row["goal"]) if row.get("goal") else None,
                    "notes": set(row.get("notes", ())),
                }
            )
            for row in found
        ]

    return run


def devices(bench: Bench) -> list[Row]:
    """Pages of a million devices, or, where all is to be quick, of twenty thousand."""
    return pages_of_devices(1_000_000 if bench.rounds > 1 else 20_000)


def sent(bench: Bench) -> list[Row]:
    """The same of commands."""
    return pages_of_commands(1_000_000 if bench.rounds > 1 else 20_000)


SCENARIOS: dict[str, Callable[[Bench], list[Row]]] = {
    "ceiling": ceiling,
    "bursts": bursts,
    "single": single,
    "connects": connects,
    "memory": memory,
    "cpu": cpu,
    "noisy": noisy,
    "commands": commands,
    "storm": storm,
    "writer": module("writer"),
    "agents": module("agents"),
    "sinks": module("sinks"),
    "devices": devices,
    "sent": sent,
}
ONLY_WHEN_NAMED = frozenset({"devices", "sent"})
"""They take minutes."""
