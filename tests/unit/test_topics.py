"""Topics: what is the bridge's, whose it is, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import RefusedError
from bridge.messages import Kind
from bridge.topics import Topics, is_device_id

TOPICS = Topics("devices")


@pytest.mark.parametrize(
    ("topic", "kind", "stream"),
    [
        ("devices/fridge-7/telemetry", Kind.TELEMETRY, "default"),
        ("devices/fridge-7/telemetry/door", Kind.TELEMETRY, "door"),
        ("devices/fridge-7/event/alarm", Kind.EVENT, "alarm"),
        ("devices/fridge-7/command", Kind.COMMAND, ""),
        ("devices/fridge-7/command/response", Kind.RESPONSE, ""),
        ("devices/fridge-7/pong", Kind.PONG, ""),
        ("devices/fridge-7/state/desired", Kind.DESIRED, ""),
        ("devices/fridge-7/state/reported", Kind.REPORTED, ""),
    ],
)
def test_a_bridge_topic_leads_to_its_device(topic: str, kind: Kind, stream: str) -> None:
    address = TOPICS.parse(topic)
    assert address is not None
    assert (address.device_id, address.kind, address.stream, address.topic) == (
        "fridge-7",
        kind,
        stream,
        topic,
    )


@pytest.mark.parametrize(
    "topic",
    [
        "devices",
        "devices/fridge-7",
        "devices/fridge-7/",
        "devices/fridge-7/presence",
        "devices/fridge-7/command/request",
        "devices/fridge-7/command/status",
        "devices/fridge-7/pong/x",
        "devices/fridge-7/event",
        "devicesx/fridge-7/telemetry",
        "home/kitchen",
    ],
)
def test_any_other_topic_is_an_ordinary_one(topic: str) -> None:
    assert TOPICS.parse(topic) is None


@pytest.mark.parametrize(
    ("topic", "reason"),
    [
        ("devices//telemetry", "bad_device_id"),
        ("devices/a b/telemetry", "bad_device_id"),
        ("devices/" + "x" * 65 + "/telemetry", "bad_device_id"),
        ("devices/küche/telemetry", "bad_device_id"),
        ("devices/fridge-7/telemetry/a/b", "bad_stream"),
        ("devices/fridge-7/telemetry/" + "/".join("abc"[:1] for _ in range(57)), "bad_stream"),
        ("devices/fridge-7/event/a b", "bad_stream"),
    ],
)
def test_what_means_the_bridge_but_cannot_be_is_refused_with_its_reason(topic: str, reason: str) -> None:
    with pytest.raises(RefusedError) as refused:
        TOPICS.parse(topic)
    assert refused.value.reason == reason


@given(st.text(max_size=80))
def test_an_address_always_has_a_valid_device_id(tail: str) -> None:
    try:
        address = TOPICS.parse("devices/" + tail)
    except RefusedError:
        return
    assert address is None or is_device_id(address.device_id)


def test_a_root_may_have_several_levels() -> None:
    topics = Topics("plant/hall-2/devices")
    address = topics.parse("plant/hall-2/devices/m1/telemetry")
    assert address is not None
    assert address.device_id == "m1"
    assert topics.of("m1", "ping") == "plant/hall-2/devices/m1/ping"


@pytest.mark.parametrize("name", ["command/request", "ping", "state/delta", "error"])
def test_an_exact_subscription_to_what_is_meant_for_a_device_is_that_device(name: str) -> None:
    assert TOPICS.owner_of(f"devices/m1/{name}") == "m1"


@pytest.mark.parametrize(
    "topic_filter", ["devices/+/ping", "devices/#", "devices/m1/#", "devices/m1/presence", "x/m1/ping"]
)
def test_watching_does_not_make_a_client_the_device(topic_filter: str) -> None:
    assert TOPICS.owner_of(topic_filter) is None
