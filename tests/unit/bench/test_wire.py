"""The load generator's packets are those of MQTT 3.1.1, and it counts acknowledgements right."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import wire
from tests.bench.acker import acks_for

NOW = 1_764_000_000.0


def test_packets_byte_for_byte() -> None:
    """Written out by hand from MQTT 3.1.1, chapter 3."""
    assert wire.connect("ab", keepalive=10) == b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x0a\x00\x02ab"
    assert wire.subscribe(7, "a/+", 1) == b"\x82\x08\x00\x07\x00\x03a/+\x01"
    assert wire.publish("a/b", b"hi") == b"\x30\x07\x00\x03a/bhi"
    assert wire.publish("a/b", b"hi", 258) == b"\x32\x09\x00\x03a/b\x01\x02hi"
    assert wire.puback(258) == b"\x40\x02\x01\x02"


@pytest.mark.parametrize(
    ("size", "length"),
    [
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (16_383, b"\xff\x7f"),
        (16_384, b"\x80\x80\x01"),
        (2_097_152, b"\x80\x80\x80\x01"),
    ],
)
def test_remaining_length(size: int, length: bytes) -> None:
    """The examples of MQTT 3.1.1, 2.2.3, table 2.4."""
    packet = wire.publish("t", b"x" * (size - 3))
    assert packet.startswith(b"\x30" + length + b"\x00\x01t")
    assert wire.split(packet) == ([(0x30, packet[1 + len(length) :])], b"")


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_any_fragmentation_gives_the_same_packets(payloads: list[bytes], data: st.DataObject) -> None:
    """Wherever the stream is cut, the same packets come out and nothing is left over."""
    stream = wire.burst("t/x", payloads) + wire.burst_acks(3)
    whole, rest = wire.split(stream)
    assert rest == b""
    assert [wire.received(*packet) for packet in whole[: len(payloads)]] == [
        ("t/x", payload, number) for number, payload in enumerate(payloads, 1)
    ]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)))))
    found: list[tuple[int, bytes]] = []
    left = b""
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        packets, left = wire.split(left + stream[begin:end])
        found += packets
    assert (found, left) == (whole, b"")


def test_a_length_without_end_is_an_error() -> None:
    """More than four length bytes are malformed, 2.2.3."""
    with pytest.raises(wire.WireError, match="four bytes"):
        wire.split(b"\x30\xff\xff\xff\xff\x01")


@pytest.mark.parametrize(("first", "body"), [(0x20, b"\x00\x05"), (0x90, b"\x00\x01\x80")])
def test_a_refusal_is_an_error(first: int, body: bytes) -> None:
    """A benchmark must not measure a server that says no."""
    with pytest.raises(wire.WireError, match="refused"):
        wire.check_granted(first, body)


def test_grants_pass() -> None:
    """A CONNACK and a SUBACK that say yes."""
    wire.check_granted(0x20, b"\x00\x00")
    wire.check_granted(0x90, b"\x00\x01\x01")


def test_telemetry_is_json_of_the_stated_size() -> None:
    """93 bytes each, different from one another, with the time of measurement."""
    payloads = list(wire.telemetry(100, NOW))
    assert {len(payload) for payload in payloads} == {wire.PAYLOAD_BYTES}
    assert len(set(payloads)) == len(payloads)
    reading = json.loads(payloads[2])
    assert reading.keys() == {"temperature", "humidity", "pressure", "battery", "up"}
    assert reading["up"] == NOW + 0.002


def test_the_trivial_acker_answers_a_burst_as_a_broker_would() -> None:
    """Otherwise the generator's ceiling would be measured against something else than it is compared with."""
    topic = "devices/bench-00001/telemetry"
    stream = wire.burst(topic, list(wire.telemetry(300, NOW)))
    assert acks_for(stream, len(stream) // 300, 4 + len(topic)) == wire.burst_acks(300)
