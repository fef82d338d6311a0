"""How many connections are taken, in all and from one address."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from bridge.broker.config import BrokerConfig
from bridge.broker.listener import Listener
from bridge.broker.wire import Wire


@dataclass
class Somebody:
    """A peer with an address."""

    address: str


def listener(**config: int) -> Listener:
    """One that is only asked."""

    def nobody() -> Wire:
        raise AssertionError("it does not listen")

    return Listener(BrokerConfig(**config), nobody)  # type: ignore[arg-type]  # numbers only


def test_an_address_has_a_limit_of_its_own() -> None:
    door = listener(max_connections_per_address=2)
    first, second, third = (Somebody("192.0.2.7") for _ in range(3))
    assert door.arrived(first, 1) is None
    assert door.arrived(second, 2) is None
    assert door.arrived(third, 3) == "too_many_connections_from_address"
    assert door.arrived(Somebody("192.0.2.8"), 4) is None
    door.left(third)
    door.left(first)
    assert door.arrived(first, 3) is None
    for one in (first, second, Somebody("192.0.2.8")):
        door.left(one)
    assert not door._by_address, "nothing is left of those who are gone"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_loopback_has_none(address: str) -> None:
    door = listener(max_connections_per_address=1)
    assert [door.arrived(Somebody(address), 1) for _ in range(3)] == [None] * 3


def test_all_together_have_one() -> None:
    door = listener(max_connections=2)
    assert door.arrived(Somebody("192.0.2.7"), 2) is None
    assert door.arrived(Somebody("192.0.2.8"), 3) == "too_many_connections"


def test_nobody_is_asked_for_an_address_that_does_not_matter() -> None:
    class Shy:
        @property
        def address(self) -> str:
            raise AssertionError("a system call for nothing")

    door = listener()
    assert door.arrived(Shy(), 1) is None
    door.left(Shy())
