"""What befalls a PostgreSQL server and the way to it. Devices notice nothing; nothing is lost; nothing is doubled."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.faults.conftest import MakeVictim
from tests.faults.fleet import Fleet, now
from tests.faults.proxy import Proxy
from tests.faults.stores import PostgresStore
from tests.faults.torture import Torture
from tests.servers import Postgres

pytestmark = pytest.mark.postgres

Fault = Callable[[Postgres, Proxy, float], None]


def stopped(server: Postgres, _proxy: Proxy, seconds: float) -> None:
    """A fast shutdown, as for an upgrade."""
    server.stop()
    time.sleep(seconds)  # the length of the outage is the fault
    server.start()


def killed(server: Postgres, _proxy: Proxy, seconds: float) -> None:
    """As by the end of the machine: it recovers from its log."""
    server.kill()
    time.sleep(seconds)
    server.start()


def paused(server: Postgres, _proxy: Proxy, seconds: float) -> None:
    """SIGSTOP: connections stay open and nothing answers."""
    server.pause()
    try:
        time.sleep(seconds)
    finally:
        server.resume()


def cut(server: Postgres, _proxy: Proxy, seconds: float) -> None:
    """An administrator ends every session, again and again."""
    until = now() + seconds
    while now() < until:
        PostgresStore(server.url_of("postgres")).column(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'mqtt-bridge%'"
        )
        time.sleep(0.2)


def delayed(_server: Postgres, proxy: Proxy, seconds: float) -> None:
    """Every piece takes a tenth of a second each way."""
    proxy.delay = 0.1
    time.sleep(seconds)
    proxy.delay = 0.0


def stalled(_server: Postgres, proxy: Proxy, seconds: float) -> None:
    """The network swallows everything, then gives it back."""
    proxy.stall()
    time.sleep(seconds)
    proxy.flow()


def reset(_server: Postgres, proxy: Proxy, seconds: float) -> None:
    """Connections are reset, again and again."""
    until = now() + seconds
    while now() < until:
        proxy.reset()
        time.sleep(0.2)


def dripping(_server: Postgres, proxy: Proxy, seconds: float) -> None:
    """One byte at a time."""
    proxy.drip = True
    time.sleep(seconds)
    proxy.drip = False


FAULTS: dict[str, tuple[Fault, float, float]] = {
    "stopped for a moment": (stopped, 1.0, 1.0),
    "stopped": (stopped, 4.0, 10.0),
    "stopped for long": (stopped, 0.0, 60.0),
    "killed": (killed, 0.5, 2.0),
    "paused (SIGSTOP)": (paused, 4.0, 10.0),
    "sessions ended": (cut, 1.0, 5.0),
    "network delays": (delayed, 2.0, 10.0),
    "network stalls": (stalled, 3.0, 10.0),
    "network resets": (reset, 1.0, 5.0),
    "network drips": (dripping, 2.0, 10.0),
}
"""What happens, and for how many seconds: in short, and in `make torture`."""


@pytest.mark.parametrize("name", FAULTS)
def test_postgres_under_load(make_victim: MakeVictim, postgres: Postgres, torture: Torture, name: str) -> None:
    fault, short, long = FAULTS[name]
    seconds = torture.pick(short, long)
    if not seconds:
        return  # the same as another one, only longer
    row = torture.row(f"PostgreSQL {name}, {seconds:g} s")
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(postgres.port))
        victim = make_victim("postgresql", port=proxy.port)
        victim.bridge.start()
        fleet: Fleet = stack.enter_context(victim.fleet(rate=1_000))
        for _ in torture.rounds(row, 1, 5):
            fleet.wait_for(200)
            fault(postgres, proxy, seconds)
            row.recovery = max(row.recovery, fleet.back_after(now()))
        victim.finish(fleet, row)
        victim.bridge.finish()
