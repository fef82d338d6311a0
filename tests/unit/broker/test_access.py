"""Who may do what, by the column `from → to` of the topics' table."""

from __future__ import annotations

import pytest

from bridge.broker.access import EVERYTHING, Role, rights_of
from bridge.topics import Topics

DEVICE = rights_of(Role.DEVICE, "fridge-7", Topics())
OPERATOR = rights_of(Role.OPERATOR, "olga", Topics())

FROM_DEVICE = ["telemetry", "telemetry/fast", "event/door", "command/response", "pong", "state/reported"]
FROM_OPERATOR = ["command", "state/desired"]
FROM_BRIDGE = ["command/request", "command/status", "ping", "presence", "state/delta", "state", "error"]


@pytest.mark.parametrize("name", FROM_DEVICE)
def test_a_device_publishes_what_comes_from_it_and_only_as_itself(name: str) -> None:
    assert DEVICE.may_publish(f"devices/fridge-7/{name}")
    assert not DEVICE.may_publish(f"devices/fridge-8/{name}")
    assert not DEVICE.may_publish(f"other/fridge-7/{name}")


@pytest.mark.parametrize("name", [*FROM_OPERATOR, *FROM_BRIDGE])
def test_a_device_publishes_nothing_else(name: str) -> None:
    assert not DEVICE.may_publish(f"devices/fridge-7/{name}")


@pytest.mark.parametrize(
    ("topic_filter", "allowed"),
    [
        *((f"devices/fridge-7/{name}", True) for name in FROM_BRIDGE),
        *((f"devices/fridge-8/{name}", False) for name in FROM_BRIDGE),
        ("devices/fridge-7/command", False),
        ("devices/fridge-7/telemetry", False),
        ("devices/fridge-7/#", False),
        ("devices/fridge-7/+", False),
        ("devices/+/ping", False),
        ("+/fridge-7/ping", False),
        ("#", False),
        ("weather", False),
        ("$SYS/#", False),
    ],
)
def test_a_device_subscribes_only_to_what_is_meant_for_it(topic_filter: str, allowed: bool) -> None:
    assert DEVICE.may_subscribe(topic_filter) is allowed


@pytest.mark.parametrize("name", ["no/id", "+", "#", "", "a" * 65])
def test_a_user_name_that_is_no_device_id_may_nothing(name: str) -> None:
    rights = rights_of(Role.DEVICE, name, Topics())
    assert not rights.may_publish(f"devices/{name}/telemetry")
    assert not rights.may_subscribe(f"devices/{name}/ping")


@pytest.mark.parametrize("name", FROM_OPERATOR)
def test_an_operator_publishes_requests_to_every_device(name: str) -> None:
    assert OPERATOR.may_publish(f"devices/fridge-7/{name}")


@pytest.mark.parametrize("name", [*FROM_DEVICE, *FROM_BRIDGE])
def test_an_operator_speaks_neither_for_a_device_nor_for_the_bridge(name: str) -> None:
    assert not OPERATOR.may_publish(f"devices/fridge-7/{name}")


@pytest.mark.parametrize("topic", ["weather", "devices", "devices/fridge-7/notes", "other/fridge-7/telemetry"])
def test_an_operator_publishes_on_ordinary_topics(topic: str) -> None:
    assert OPERATOR.may_publish(topic)


def test_an_operator_reads_everything() -> None:
    assert all(OPERATOR.may_subscribe(f) for f in ("#", "devices/#", "+/x", "devices/fridge-7/telemetry"))


def test_everything_is_everything() -> None:
    assert EVERYTHING.may_publish("devices/fridge-7/ping")
    assert EVERYTHING.may_subscribe("#")
    assert EVERYTHING.may_receive("a")
