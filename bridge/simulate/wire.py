"""The MQTT 3.1.1 bytes of a simulated device. Its own and not the broker's: what both get wrong in the same way no
simulation would show. Pure."""

from __future__ import annotations

from typing import Final

from bridge.errors import BridgeError

CONNACK: Final = 2
PUBLISH: Final = 3
PUBACK: Final = 4
PUBREC: Final = 5
PUBCOMP: Final = 7
SUBACK: Final = 9

PINGREQ_PACKET: Final = b"\xc0\x00"
DISCONNECT_PACKET: Final = b"\xe0\x00"

_REFUSALS: Final = {
    1: "the broker does not speak MQTT 3.1.1",
    2: "the client id is refused",
    3: "the broker is not available",
    4: "the user name or the password is wrong",
    5: "not authorised",
}


class WireError(BridgeError):
    """The broker has refused, or sends what is no MQTT."""


def _length(size: int) -> bytes:
    """Remaining Length (2.2.3)."""
    out = bytearray()
    while True:
        size, digit = divmod(size, 128)
        out.append(digit | 0x80 if size else digit)
        if not size:
            return bytes(out)


def _text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2, "big") + data


def connect(client_id: str, keepalive: int, username: str | None, password: str | None) -> bytes:
    """CONNECT (3.1) with a clean session; `keepalive` in seconds."""
    flags = 0x02 | (username is not None) << 7 | (password is not None) << 6
    body = b"\x00\x04MQTT\x04" + bytes((flags,)) + keepalive.to_bytes(2, "big") + _text(client_id)
    body += b"".join(_text(field) for field in (username, password) if field is not None)
    return b"\x10" + _length(len(body)) + body


def subscribe(packet_id: int, filters: list[str]) -> bytes:
    """SUBSCRIBE (3.8), each filter at QoS 1."""
    body = packet_id.to_bytes(2, "big") + b"".join(_text(one) + b"\x01" for one in filters)
    return b"\x82" + _length(len(body)) + body


def publish(topic: str, payload: bytes, qos: int, packet_id: int) -> bytes:
    """PUBLISH (3.3); `packet_id` counts at QoS 1 and 2 only."""
    body = _text(topic) + (packet_id.to_bytes(2, "big") if qos else b"") + payload
    return bytes((0x30 | qos << 1,)) + _length(len(body)) + body


def puback(packet_id: int) -> bytes:
    """PUBACK (3.4)."""
    return b"\x40\x02" + packet_id.to_bytes(2, "big")


def pubrel(packet_id: int) -> bytes:
    """PUBREL (3.6)."""
    return b"\x62\x02" + packet_id.to_bytes(2, "big")


def split(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The whole packets at the beginning of `data`, as first byte and body, and what is left. Raises WireError."""
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
                raise WireError("the broker sends a Remaining Length of more than four bytes")
        else:
            break
        if at + length > end:
            break
        packets.append((data[start], data[at : at + length]))
        start = at + length
    return packets, data[start:]


def check_granted(kind: int, body: bytes) -> None:
    """Raises WireError when a CONNACK or SUBACK says no."""
    if kind == CONNACK and body[1:2] != b"\x00":
        raise WireError(_REFUSALS.get(body[-1] if body else -1, f"CONNACK {body.hex()}"))
    if kind == SUBACK and 0x80 in body[2:]:
        raise WireError("a subscription is refused")


def received(first: int, body: bytes) -> tuple[str, bytes, int]:
    """Topic, payload and packet identifier (0 at QoS 0) of a PUBLISH."""
    end = 2 + int.from_bytes(body[:2], "big")
    topic = body[2:end].decode()
    if first & 0x06:
        return topic, body[end + 2 :], int.from_bytes(body[end : end + 2], "big")
    return topic, body[end:], 0
