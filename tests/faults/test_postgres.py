"""What befalls a PostgreSQL server and the way to it. Devices notice nothing; nothing is lost; nothing is doubled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest

from tests.faults.conftest import MakeVictim
from tests.faults.fleet import Fleet, now
from tests.faults.proxy import Proxy
from tests.faults.stores import PostgresStore
from tests.faults.torture import Torture
from tests.servers import Postgres

pytestmark = pytest.mark.postgres

AGAIN = 0.2
"""Seconds between two blows of a fault that is dealt again and again."""
DEVICES = 20
WINDOW = 50
MEANWHILE = DEVICES * WINDOW + 200
"""Acknowledgements that must come while the fault lasts: more than can have been under way when it began."""

Fault = Callable[[Postgres, Proxy], AbstractContextManager[None]]


@contextmanager
def stopped(server: Postgres, _proxy: Proxy) -> Iterator[None]:
    """A fast shutdown, as for an upgrade."""
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextmanager
def killed(server: Postgres, _proxy: Proxy) -> Iterator[None]:
    """As by the end of the machine: it recovers from its log."""
    server.kill()
    try:
        yield
    finally:
        server.start()


@contextmanager
def paused(server: Postgres, _proxy: Proxy) -> Iterator[None]:
    """SIGSTOP: connections stay open and nothing answers."""
    server.pause()
    try:
        yield
    finally:
        server.resume()


def sessions_ended(server: Postgres, _proxy: Proxy) -> AbstractContextManager[None]:
    """An administrator ends every session, again and again."""
    database = PostgresStore(server.url_of("postgres"))
    return again_and_again(
        lambda: database.column(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'mqtt-bridge%'"
        )
    )


@contextmanager
def delayed(_server: Postgres, proxy: Proxy) -> Iterator[None]:
    """Every piece takes a tenth of a second each way."""
    proxy.delay = 0.1
    try:
        yield
    finally:
        proxy.delay = 0.0


@contextmanager
def stalled(_server: Postgres, proxy: Proxy) -> Iterator[None]:
    """Nothing passes; connections stay open."""
    proxy.stall()
    try:
        yield
    finally:
        proxy.flow()


def reset(_server: Postgres, proxy: Proxy) -> AbstractContextManager[None]:
    """Connections are reset, again and again."""
    return again_and_again(proxy.reset)


@contextmanager
def dripping(_server: Postgres, proxy: Proxy) -> Iterator[None]:
    """One byte at a time."""
    proxy.drip = True
    try:
        yield
    finally:
        proxy.drip = False


@contextmanager
def again_and_again(blow: Callable[[], object]) -> Iterator[None]:
    ended = threading.Event()

    def deal() -> None:
        while not ended.wait(AGAIN):
            blow()

    blow()
    thread = threading.Thread(target=deal)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


SERVER: dict[str, tuple[Fault, tuple[float, ...]]] = {
    "stopped": (stopped, (60, 1, 10)),
    "killed": (killed, (2,)),
    "paused (SIGSTOP)": (paused, (10,)),
    "sessions ended": (sessions_ended, (5,)),
}
NETWORK: dict[str, tuple[Fault, tuple[float, ...]]] = {
    "network delays": (delayed, (10,)),
    "network stalls": (stalled, (10,)),
    "network resets": (reset, (5,)),
    "network drips": (dripping, (10,)),
}
"""What happens, and for how many seconds in the rounds of `make torture`, which has time for the first one at least; in
short it lasts until devices have been acknowledged enough meanwhile."""


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(SERVER, id="server", marks=pytest.mark.weight(7)),
        pytest.param(NETWORK, id="network", marks=pytest.mark.weight(4)),
    ],
)
def test_postgres_under_load(
    make_victim: MakeVictim,
    postgres: Postgres,
    torture: Torture,
    faults: dict[str, tuple[Fault, tuple[float, ...]]],
) -> None:
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(postgres.port))
        victim = make_victim("postgresql", port=proxy.port, BRIDGE_SPOOL__AFTER="0.5")
        victim.bridge.start()
        fleet: Fleet = stack.enter_context(victim.fleet(rate=1_000, devices=DEVICES, window=WINDOW))
        for tried, (name, (fault, lengths)) in enumerate(faults.items()):
            many = f", {', '.join(map(str, lengths))} s in turn" if torture.long and len(lengths) > 1 else ""
            row = torture.row(f"PostgreSQL {name}{many}")
            for number in torture.rounds(row, 1, max(4, 2 * len(lengths)), faults_left=len(faults) - tried):
                fleet.wait_for(200)
                with fault(postgres, proxy):
                    until = now() + torture.pick(0, lengths[(number - 1) % len(lengths)])
                    fleet.wait_for(MEANWHILE)
                    time.sleep(max(0.0, until - now()))  # the length of the outage is the fault
                row.recovery = max(row.recovery, fleet.back_after(now()))
                victim.drained()
            victim.audit(row)
        victim.finish(fleet, row)
        victim.bridge.finish()
