"""The bytes of simulated devices, beside those that the broker's codec makes of the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.broker import packets
from bridge.simulate import wire


def body(packet: bytes) -> bytes:
    """A packet without its fixed header."""
    found, rest = wire.split(packet)
    assert len(found) == 1
    assert not rest
    return found[0][1]


@pytest.mark.parametrize(("username", "password"), [(None, None), ("u", None), ("u", "p")])
def test_connect(username: str | None, password: str | None) -> None:
    made = packets.decode_connect(body(wire.connect("d", 60, username, password)))
    assert made == packets.Connect(4, "d", True, 60, None, username, password.encode() if password else None)


def test_subscribe() -> None:
    assert packets.decode_subscribe(body(wire.subscribe(7, ["a/b", "c"]))) == (7, [("a/b", 1), ("c", 1)])


@given(st.text(min_size=1, max_size=20), st.binary(max_size=400), st.integers(0, 2), st.integers(1, 65_535))
def test_publish(topic: str, payload: bytes, qos: int, packet_id: int) -> None:
    made = wire.publish(topic, payload, qos, packet_id)
    assert made == packets.publish(topic.encode(), payload, qos, False, packet_id if qos else 0)
    (packet,), _ = wire.split(made)
    assert wire.received(*packet) == (topic, payload, packet_id if qos else 0)


def test_acknowledgements() -> None:
    assert wire.puback(300) == packets.puback(300)
    assert wire.pubrel(300) == packets.pubrel(300)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_in_any_pieces(payload: bytes, cut: int) -> None:
    data = wire.publish("a", payload, 1, 1) + wire.puback(1)
    first, rest = wire.split(data[:cut])
    second, left = wire.split(rest + data[cut:])
    assert (first + second, left) == wire.split(data)


@pytest.mark.parametrize(("code", "text"), [(1, "3.1.1"), (4, "password"), (5, "authorised"), (99, "CONNACK 0063")])
def test_refusals(code: int, text: str) -> None:
    with pytest.raises(wire.WireError, match=text):
        wire.check_granted(wire.CONNACK, bytes((0, code)))


def test_a_length_without_an_end() -> None:
    with pytest.raises(wire.WireError, match="four bytes"):
        wire.split(b"\x30\xff\xff\xff\xff\x01")
