"""Rules for every test: the event loops it runs on, and what happens where a server's programs are missing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import uvloop

from tests.servers import ServerError, program


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every async test runs on each event loop that `serve` may run on; sync tests are not repeated."""
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


def pytest_configure() -> None:
    """A run that was started in the background of a script ignores Ctrl-C, and so would all that the tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the tests of tests/faults go on; on which server. Here, as pytest asks no other place for options."""
    parser.addoption("--torture", action="store_true", help="repeat each fault as often as `make torture` does")
    parser.addoption("--torture-minutes", type=float, default=60.0, help="begin no further round after so long")
    parser.addoption("--timescaledb", action="store_true", help="only PostgreSQL's tests, on a server with TimescaleDB")


NEEDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "postgres": ("postgresql", ("initdb", "postgres")),
    "mosquitto": ("mosquitto mosquitto-clients", ("mosquitto", "mosquitto_pub", "mosquitto_sub")),
    "strace": ("strace", ("strace",)),
    "browser": ("chromium", ("chromium",)),
    "mount": ("mount, and be root", ("mount",)),
    "promtool": ("prometheus", ("promtool",)),
}
"""Marker (or fixture of the same name) → Debian's packages, and the programs that must be there."""


def missing(need: str) -> list[str]:
    """The programs of `need` that this machine does not have."""
    absent = []
    for name in NEEDS[need][1]:
        try:
            program(name)
        except ServerError:
            absent.append(name)
    if need == "mount" and os.geteuid() != 0:
        absent.append("right to mount")
    return absent


def servers_required() -> bool:
    """Whether a missing server is a failure: always in CI, elsewhere only when asked for."""
    return os.environ.get("CI") == "true" or os.environ.get("BRIDGE_TEST_REQUIRE_SERVERS") == "1"


def needs_of(item: pytest.Item) -> list[str]:
    """What `item` needs, said by a marker or by using a fixture of that name."""
    fixtures: list[str] = getattr(item, "fixturenames", [])
    return [need for need in NEEDS if need in fixtures or item.get_closest_marker(need) is not None]


NOT_RUN = pytest.StashKey[Counter[str]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, and count, the tests whose programs are missing, unless they are required. With `--timescaledb`, all
    that do not need PostgreSQL, or need telemetry to be in partitions."""
    if config.getoption("--timescaledb"):
        chosen = [item for item in items if "postgres" in needs_of(item) and not item.get_closest_marker("partitions")]
        items[:] = chosen
    not_run = config.stash.setdefault(NOT_RUN, Counter())
    absent = {need for need in NEEDS if missing(need)}
    if servers_required() or not absent:
        return
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        lacking = absent.intersection(needs_of(item))
        (left_out if lacking else kept).append(item)
        not_run.update(lacking)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that gets here without its programs fails, and says which ones."""
    for need in needs_of(item):
        if programs := missing(need):
            pytest.fail(f"{need}: no {', '.join(programs)} here; apt install {NEEDS[need][0]}", pytrace=False)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist tells what it left out to the process that writes the summary."""
    output: dict[str, object] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        not_run = session.config.stash[NOT_RUN]
        output["not run"] = dict(not_run)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:  # a WorkerController, of which xdist has no types
    """Every worker has looked at every test: one of them is enough. One that died has nothing to say."""
    if output := getattr(node, "workeroutput", None):
        node.config.stash[NOT_RUN] = Counter(output.get("not run", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say last and loudly what was left out: a green run that hides it would be a lie."""
    for need, count in sorted(config.stash.get(NOT_RUN, Counter[str]()).items()):
        terminalreporter.write_line(
            f"NOT RUN: {count} test{'s' * (count != 1)}, for want of {need} (apt install {NEEDS[need][0]})",
            red=True,
            bold=True,
        )
