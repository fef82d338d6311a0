"""Control packets byte for byte, and against a second implementation of the standard: amqtt's packet classes."""

from __future__ import annotations

from typing import Any

import pytest
from amqtt.adapters import BufferReader
from amqtt.mqtt import packet_class
from amqtt.mqtt.connect import ConnectPacket, ConnectPayload, ConnectVariableHeader
from amqtt.mqtt.packet import MQTTFixedHeader
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket
from hypothesis import given
from hypothesis import strategies as st

from bridge.broker import packets
from bridge.broker.packets import Connect, ProtocolError, Will

# Protocol name MQTT, level 4, then flags, keepalive 60, client id "a".
HEAD = b"\x00\x04MQTT\x04"
TAIL = b"\x00\x3c\x00\x01a"


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (packets.connack(packets.ACCEPTED), b"\x20\x02\x00\x00"),
        (packets.connack(packets.ACCEPTED, session_present=True), b"\x20\x02\x01\x00"),
        # [MQTT-3.2.2-4]
        (packets.connack(packets.BAD_CREDENTIALS, session_present=True), b"\x20\x02\x00\x04"),
        (packets.puback(0x1234), b"\x40\x02\x12\x34"),
        (packets.pubrec(1), b"\x50\x02\x00\x01"),
        (packets.pubrel(1), b"\x62\x02\x00\x01"),
        (packets.pubcomp(65535), b"\x70\x02\xff\xff"),
        (packets.suback(10, [0, 1, 2, 0x80]), b"\x90\x06\x00\x0a\x00\x01\x02\x80"),
        (packets.unsuback(10), b"\xb0\x02\x00\x0a"),
        (packets.PINGRESP_BYTES, b"\xd0\x00"),
        (packets.publish(b"a/b", b"hi", 0, False), b"\x30\x07\x00\x03a/bhi"),
        (packets.publish(b"a/b", b"hi", 0, True, 9), b"\x31\x07\x00\x03a/bhi"),
        (packets.publish(b"a/b", b"hi", 1, False, 9), b"\x32\x09\x00\x03a/b\x00\x09hi"),
        (packets.publish(b"a/b", b"", 2, True, 9, dup=True), b"\x3d\x07\x00\x03a/b\x00\x09"),
    ],
)
def test_encoded(made: bytes, expected: bytes) -> None:
    assert made == expected


@pytest.mark.parametrize(
    ("length", "encoded"),
    [
        # MQTT 3.1.1, table 2.4
        (0, "00"), (127, "7f"), (128, "8001"), (16_383, "ff7f"), (16_384, "808001"), (2_097_151, "ffff7f"),
        (2_097_152, "80808001"), (268_435_455, "ffffff7f"),
    ],
)  # fmt: skip
def test_remaining_length(length: int, encoded: str) -> None:
    assert packets.remaining_length(length).hex() == encoded


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (HEAD + b"\x02" + TAIL, Connect(4, "a", True, 60, None, None, None)),
        (HEAD + b"\x00" + TAIL, Connect(4, "a", False, 60, None, None, None)),
        (
            HEAD + b"\xee" + TAIL + b"\x00\x01t\x00\x02by\x00\x01u\x00\x01p",
            Connect(4, "a", True, 60, Will("t", b"by", 1, True), "u", b"p"),
        ),
        # [MQTT-3.1.3-6]: an empty client id is possible; a user name without a password too (3.1.2.8).
        (HEAD + b"\x82\x00\x00\x00\x00\x00\x01u", Connect(4, "", True, 0, None, "u", None)),
        # [MQTT-3.1.2-2]: answered by the broker, so not an error here.
        (b"\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01a", Connect(5, "", True, 0, None, None, None)),
        (b"\x00\x06MQIsdp\x03\x02" + TAIL, Connect(3, "", True, 0, None, None, None)),
    ],
)
def test_connect(body: bytes, expected: Connect) -> None:
    assert packets.decode_connect(body) == expected


@pytest.mark.parametrize(
    ("clause", "body"),
    [
        ("MQTT-3.1.2-1", b"\x00\x04MQTX\x04\x02" + TAIL),
        ("MQTT-3.1.2-3", HEAD + b"\x03" + TAIL),
        ("MQTT-3.1.2-11", HEAD + b"\x0a" + TAIL),
        ("MQTT-3.1.2-15", HEAD + b"\x22" + TAIL),
        ("MQTT-3.1.2-14", HEAD + b"\x1e" + TAIL + b"\x00\x01t\x00\x00"),
        ("MQTT-3.1.2-22", HEAD + b"\x42" + TAIL + b"\x00\x01p"),
        ("MQTT-1.5.3-1", HEAD + b"\x02\x00\x3c\x00\x01\xff"),
        # A surrogate is no character, encoded or not.
        ("MQTT-1.5.3-1", HEAD + b"\x02\x00\x3c\x00\x03\xed\xa0\x80"),
        ("MQTT-1.5.3-2", HEAD + b"\x02\x00\x3c\x00\x01\x00"),
        ("MQTT-3.3.2-2", HEAD + b"\x06" + TAIL + b"\x00\x03a/#\x00\x00"),
        ("middle of a field", HEAD + b"\x02\x00\x3c\x00\x05a"),
        ("longer than its fields", HEAD + b"\x02" + TAIL + b"x"),
    ],
)
def test_connect_refused(clause: str, body: bytes) -> None:
    with pytest.raises(ProtocolError, match=clause):
        packets.decode_connect(body)


def test_subscribe_and_unsubscribe() -> None:
    assert packets.decode_subscribe(b"\x00\x0a\x00\x03a/b\x01\x00\x01#\x02") == (10, [("a/b", 1), ("#", 2)])
    assert packets.decode_unsubscribe(b"\x00\x0a\x00\x03a/b\x00\x01#") == (10, ["a/b", "#"])
    assert packets.decode_packet_id(b"\x12\x34") == 0x1234


@pytest.mark.parametrize(
    ("clause", "body"),
    [
        ("MQTT-2.3.1-1", b"\x00\x00\x00\x01a\x00"),
        ("MQTT-3.8.3-3", b"\x00\x01"),
        ("MQTT-3.8.3-4", b"\x00\x01\x00\x01a\x03"),
        ("MQTT-4.7.3-1", b"\x00\x01\x00\x00\x00"),
        ("MQTT-4.7.1-2", b"\x00\x01\x00\x03#/a\x00"),
        ("MQTT-4.7.1-2", b"\x00\x01\x00\x02a#\x00"),
        ("MQTT-4.7.1-3", b"\x00\x01\x00\x02a+\x00"),
        ("middle of a field", b"\x00\x01\x00\x01a"),
    ],
)
def test_subscribe_refused(clause: str, body: bytes) -> None:
    with pytest.raises(ProtocolError, match=clause):
        packets.decode_subscribe(body)


def test_unsubscribe_refused() -> None:
    with pytest.raises(ProtocolError, match=r"MQTT-3\.10\.3-2"):
        packets.decode_unsubscribe(b"\x00\x01")


@pytest.mark.parametrize("body", [b"", b"\x01", b"\x00\x01\x00"])
def test_acknowledgement_of_the_wrong_length(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        packets.decode_packet_id(body)


@pytest.mark.parametrize("kind", range(16))
def test_flags_of_the_fixed_header(kind: int) -> None:
    """[MQTT-2.2.2-2]; PUBLISH, whose flags mean something, is not asked here."""
    right = 2 if kind in (packets.PUBREL, packets.SUBSCRIBE, packets.UNSUBSCRIBE) else 0
    packets.check_flags(kind, right)
    for wrong in set(range(16)) - {right}:
        with pytest.raises(ProtocolError, match=r"MQTT-2\.2\.2-2"):
            packets.check_flags(kind, wrong)


# ---------------------------------------------------------------------- against amqtt

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
topic = text.filter(lambda t: t and "+" not in t and "#" not in t)
packet_ids = st.integers(1, 65_535)


async def parsed(data: bytes) -> Any:
    """What amqtt reads from our bytes."""
    reader = BufferReader(data)
    header = await MQTTFixedHeader.from_stream(reader)
    assert header is not None
    return await packet_class(header).from_stream(reader, fixed_header=header)


def body_of(packet: Any) -> bytes:
    """The bytes that amqtt writes, without the fixed header."""
    data: bytes = packet.to_bytes()
    start = next(i for i in range(1, 5) if not data[i] & 0x80) + 1
    return data[start:]


def run(coroutine: Any) -> Any:
    """The result of a coroutine that never waits, as amqtt's are over a buffer."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


@given(topic, st.binary(max_size=300), st.integers(0, 2), st.booleans(), packet_ids, st.booleans())
def test_amqtt_reads_our_publish(name: str, payload: bytes, qos: int, retain: bool, packet_id: int, dup: bool) -> None:
    packet = run(parsed(packets.publish(name.encode(), payload, qos, retain, packet_id, dup)))
    read = (packet.topic_name, packet.data, packet.qos, packet.retain_flag, packet.dup_flag)
    assert read == (name, payload, qos, retain, dup)
    assert packet.packet_id == (packet_id if qos else None)
    written = PublishPacket.build(name, payload, packet_id if qos else None, dup, qos, retain).to_bytes()
    assert packets.publish(name.encode(), payload, qos, retain, packet_id, dup) == written


@given(packet_ids, st.lists(st.sampled_from([0, 1, 2, 128]), min_size=1, max_size=200))
def test_amqtt_reads_our_acknowledgements(packet_id: int, codes: list[int]) -> None:
    for encode in (packets.puback, packets.pubrec, packets.pubrel, packets.pubcomp, packets.unsuback):
        assert run(parsed(encode(packet_id))).variable_header.packet_id == packet_id
    suback = run(parsed(packets.suback(packet_id, codes)))
    assert (suback.variable_header.packet_id, suback.payload.return_codes) == (packet_id, codes)
    connack = run(parsed(packets.connack(0, session_present=True)))
    assert (connack.return_code, connack.session_parent) == (0, 1)


@given(packet_ids, st.lists(st.tuples(topic, st.integers(0, 2)), min_size=1, max_size=20))
def test_we_read_amqtts_subscriptions(packet_id: int, wanted: list[tuple[str, int]]) -> None:
    assert packets.decode_subscribe(body_of(SubscribePacket.build(wanted, packet_id))) == (packet_id, wanted)
    filters = [topic_filter for topic_filter, _ in wanted]
    assert packets.decode_unsubscribe(body_of(UnsubscribePacket.build(filters, packet_id))) == (packet_id, filters)


@given(
    text, st.booleans(), st.integers(0, 65_535),
    st.none() | st.builds(Will, topic, st.binary(max_size=50), st.integers(0, 2), st.booleans()),
    st.none() | text, st.none() | text,
)  # fmt: skip
def test_we_read_amqtts_connect(
    client_id: str, clean: bool, keepalive: int, will: Will | None, username: str | None, password: str | None
) -> None:
    header = ConnectVariableHeader(keep_alive=keepalive)
    header.clean_session_flag = clean
    payload = ConnectPayload(client_id=client_id)
    if will is not None:
        header.will_flag, header.will_qos, header.will_retain_flag = True, will.qos, will.retain
        payload.will_topic, payload.will_message = will.topic, will.payload
    if username is not None:
        header.username_flag, payload.username = True, username
        if password is not None:
            header.password_flag, payload.password = True, password
    packet = ConnectPacket(variable_header=header, payload=payload)
    secret = password.encode() if password is not None and username is not None else None
    expected = Connect(4, client_id, clean, keepalive, will, username, secret)
    assert packets.decode_connect(body_of(packet)) == expected
