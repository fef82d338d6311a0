"""The MQTT 3.1.1 bytes that the load generator sends and understands. Pure: no sockets, no clock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

CONNACK: Final = 2
PUBLISH: Final = 3
PUBACK: Final = 4
SUBACK: Final = 9
PINGRESP: Final = 13

PINGREQ_PACKET: Final = b"\xc0\x00"
DISCONNECT_PACKET: Final = b"\xe0\x00"

PAYLOAD_BYTES: Final = 93
"""The size that every published figure of the bridge was measured with."""


class WireError(Exception):
    """The server sent what MQTT does not allow, or refused."""


def _length(value: int) -> bytes:
    """Remaining Length, MQTT 3.1.1, 2.2.3."""
    out = bytearray()
    while True:
        value, digit = divmod(value, 128)
        out.append(digit | 0x80 if value else digit)
        if not value:
            return bytes(out)


def _string(text: str) -> bytes:
    """A UTF-8 string with its two length bytes, 1.5.3."""
    data = text.encode()
    return len(data).to_bytes(2, "big") + data


def connect(client_id: str, keepalive: int = 600, *, clean: bool = True, user: tuple[str, str] | None = None) -> bytes:
    """CONNECT, 3.1: no will; `keepalive` in seconds, `user` a name and a password."""
    flags = (0x02 if clean else 0) | (0xC0 if user else 0)
    body = b"\x00\x04MQTT\x04" + bytes((flags,)) + keepalive.to_bytes(2, "big") + _string(client_id)
    body += b"".join(_string(text) for text in user or ())
    return b"\x10" + _length(len(body)) + body


def subscribe(packet_id: int, topic_filter: str, qos: int = 1) -> bytes:
    """SUBSCRIBE to one filter, 3.8."""
    body = packet_id.to_bytes(2, "big") + _string(topic_filter) + bytes((qos,))
    return b"\x82" + _length(len(body)) + body


def publish(topic: str, payload: bytes, packet_id: int = 0) -> bytes:
    """PUBLISH, 3.3: QoS 1 with a packet id, QoS 0 without (`packet_id` 0)."""
    body = _string(topic) + (packet_id.to_bytes(2, "big") if packet_id else b"") + payload
    return (b"\x32" if packet_id else b"\x30") + _length(len(body)) + body


def puback(packet_id: int) -> bytes:
    """PUBACK, 3.4: always four bytes, so acknowledgements can be counted by length."""
    return b"\x40\x02" + packet_id.to_bytes(2, "big")


def burst(topic: str, payloads: list[bytes]) -> bytes:
    """One QoS 1 PUBLISH per payload, packet ids from 1 up."""
    return b"".join(publish(topic, payload, number) for number, payload in enumerate(payloads, 1))


def burst_acks(count: int) -> bytes:
    """What a server answers to `burst`: PUBACKs in the order of the messages [MQTT-4.6.0-2]."""
    return b"".join(puback(number) for number in range(1, count + 1))


def split(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The whole packets at the start of `data`, as (first byte, body), and the bytes that are left over."""
    packets: list[tuple[int, bytes]] = []
    start, end = 0, len(data)
    while start + 2 <= end:
        length, shift, at = 0, 0, start + 1
        while at < end:
            digit = data[at]
            at += 1
            length |= (digit & 0x7F) << shift
            shift += 7
            if digit < 0x80:
                break
            if shift == 28:
                raise WireError("Remaining Length of more than four bytes")
        else:
            break  # the length itself is not complete yet
        if at + length > end:
            break
        packets.append((data[start], data[at : at + length]))
        start = at + length
    return packets, data[start:]


def check_granted(first: int, body: bytes) -> None:
    """Raise WireError when a CONNACK or SUBACK says no."""
    kind = first >> 4
    if kind == CONNACK and body[1:2] != b"\x00":
        raise WireError(f"connection refused, return code {body[1:2].hex() or 'missing'}")
    if kind == SUBACK and 0x80 in body[2:]:
        raise WireError("subscription refused")


def received(first: int, body: bytes) -> tuple[str, bytes, int]:
    """Topic, payload and packet id (0 at QoS 0) of a PUBLISH that the server sent."""
    size = int.from_bytes(body[:2], "big")
    topic = body[2 : 2 + size].decode()
    if first & 0x06:
        return topic, body[4 + size :], int.from_bytes(body[2 + size : 4 + size], "big")
    return topic, body[2 + size :], 0


def telemetry(count: int, now: float) -> Iterator[bytes]:
    """`count` readings as a sensor would send them, each a JSON object of exactly PAYLOAD_BYTES bytes.

    Without `ts`, so that the time of arrival counts: the same readings are sent again and again, and no sensor goes
    back in time with every burst, which scatters its rows over the whole index. `now`: the first one's `up`, seconds.
    """
    for number in range(count):
        temperature = 18.0 + number * 37 % 900 / 100
        humidity = 40.0 + number * 53 % 2000 / 100
        pressure = 1000.0 + number * 71 % 300 / 10
        yield (
            f'{{"temperature":{temperature:.2f},"humidity":{humidity:.2f},"pressure":{pressure:.1f},'
            f'"battery":3.7{number * 7 % 1000:03d},"up":{now + number / 1000:.3f}}}'
        ).encode()
