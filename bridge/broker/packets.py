"""MQTT 3.1.1 control packets: bytes to values and values to bytes. Pure. Clauses are those of the OASIS standard."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from bridge.errors import BridgeError

CONNECT: Final = 1
CONNACK: Final = 2
PUBLISH: Final = 3
PUBACK: Final = 4
PUBREC: Final = 5
PUBREL: Final = 6
PUBCOMP: Final = 7
SUBSCRIBE: Final = 8
SUBACK: Final = 9
UNSUBSCRIBE: Final = 10
UNSUBACK: Final = 11
PINGREQ: Final = 12
PINGRESP: Final = 13
DISCONNECT: Final = 14

ACCEPTED: Final = 0
BAD_PROTOCOL: Final = 1
BAD_CLIENT_ID: Final = 2
UNAVAILABLE: Final = 3
BAD_CREDENTIALS: Final = 4
NOT_AUTHORISED: Final = 5

FAILURE: Final = 0x80
"""SUBACK's return code for a filter that is not granted [MQTT-3.9.3-1]."""

PINGRESP_BYTES: Final = b"\xd0\x00"

_CUT: Final = "a packet ends in the middle of a field"
_ack = struct.Struct(">BBH").pack
_u16 = struct.Struct(">H")
_FLAGS: Final = {PUBREL: 2, SUBSCRIBE: 2, UNSUBSCRIBE: 2}
"""The fixed header's lower four bits must be these, and 0 for all others but PUBLISH [MQTT-2.2.2-2]."""


class ProtocolError(BridgeError):
    """The peer has broken the standard: the network connection must be closed [MQTT-4.8.0-1]."""


class Will(NamedTuple):
    """What is to be published when the client is gone without a DISCONNECT."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


class Connect(NamedTuple):
    """A CONNECT packet. `keepalive` is in seconds, 0 for none."""

    level: int
    client_id: str
    clean: bool
    keepalive: int
    will: Will | None
    username: str | None
    password: bytes | None


class _Reader:
    """Reads fields from a packet's body, and nothing beyond its end. Without a call inside a call: ten thousand devices
    that come back at once bring twenty thousand packets through here."""

    __slots__ = ("_at", "_body", "_end")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0
        self._end = len(body)

    @property
    def left(self) -> int:
        return self._end - self._at

    def u8(self) -> int:
        at = self._at
        if at >= self._end:
            raise ProtocolError(_CUT)
        self._at = at + 1
        return self._body[at]

    def u16(self) -> int:
        at = self._at
        self._at = stop = at + 2
        if stop > self._end:
            raise ProtocolError(_CUT)
        return self._body[at] << 8 | self._body[at + 1]

    def data(self) -> bytes:
        body, start = self._body, self._at + 2
        if start > self._end:
            raise ProtocolError(_CUT)
        self._at = stop = start + (body[start - 2] << 8 | body[start - 1])
        if stop > self._end:
            raise ProtocolError(_CUT)
        return body[start:stop]

    def text(self) -> str:
        return utf8(self.data())


def utf8(data: bytes) -> str:
    """A UTF-8 string. Raises ProtocolError for ill-formed UTF-8 [MQTT-1.5.3-1] and for NUL [MQTT-1.5.3-2]."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError("a string is not UTF-8 [MQTT-1.5.3-1]") from error
    if "\0" in text:
        raise ProtocolError("a string holds U+0000 [MQTT-1.5.3-2]")
    return text


def check_flags(kind: int, flags: int) -> None:
    """Raises ProtocolError when the fixed header's flags are not those that the packet type has [MQTT-2.2.2-2]."""
    if flags != _FLAGS.get(kind, 0):
        raise ProtocolError(f"packet type {kind} has flags {flags:#x} [MQTT-2.2.2-2]")


def check_empty(body: bytes) -> None:
    """Raises ProtocolError when a packet has a body that should have none (3.12, 3.14)."""
    if body:
        raise ProtocolError("a packet has a body that should have none")


def decode_connect(body: bytes) -> Connect:
    """Raises ProtocolError. An unknown protocol level is returned as it is: it is answered [MQTT-3.1.2-2]."""
    reader = _Reader(body)
    name = reader.data()
    level = reader.u8()
    if name == b"MQIsdp" and level == 3:
        return Connect(level, "", True, 0, None, None, None)
    if name != b"MQTT":
        raise ProtocolError(f"protocol name is {name[:16]!r} [MQTT-3.1.2-1]")
    if level != 4:
        return Connect(level, "", True, 0, None, None, None)
    flags = reader.u8()
    if flags & 0x01:
        raise ProtocolError("the reserved connect flag is set [MQTT-3.1.2-3]")
    will_flag, will_qos, will_retain = flags & 0x04, (flags >> 3) & 3, bool(flags & 0x20)
    if not will_flag and (will_qos or will_retain):
        raise ProtocolError("will QoS or retain without a will [MQTT-3.1.2-11], [MQTT-3.1.2-13], [MQTT-3.1.2-15]")
    if will_qos == 3:
        raise ProtocolError("will QoS is 3 [MQTT-3.1.2-14]")
    has_username, has_password = flags & 0x80, flags & 0x40
    if has_password and not has_username:
        raise ProtocolError("a password without a user name [MQTT-3.1.2-22]")
    keepalive = reader.u16()
    client_id = reader.text()
    will = None
    if will_flag:
        topic = reader.text()
        check_topic_name(topic)
        will = Will(topic, reader.data(), will_qos, will_retain)
    username = reader.text() if has_username else None
    password = reader.data() if has_password else None
    if reader.left:
        raise ProtocolError("CONNECT is longer than its fields")
    return Connect(level, client_id, bool(flags & 0x02), keepalive, will, username, password)


def decode_subscribe(body: bytes) -> tuple[int, list[tuple[str, int]]]:
    """The packet identifier and the (filter, QoS) pairs. Raises ProtocolError."""
    reader = _Reader(body)
    packet_id = _packet_id(reader)
    wanted = []
    while reader.left:
        topic_filter = reader.text()
        qos = reader.u8()
        if qos > 2:
            raise ProtocolError(f"requested QoS is {qos} [MQTT-3.8.3-4]")
        check_topic_filter(topic_filter)
        wanted.append((topic_filter, qos))
    if not wanted:
        raise ProtocolError("SUBSCRIBE names no filter [MQTT-3.8.3-3]")
    return packet_id, wanted


def decode_unsubscribe(body: bytes) -> tuple[int, list[str]]:
    """The packet identifier and the filters. Raises ProtocolError."""
    reader = _Reader(body)
    packet_id = _packet_id(reader)
    filters = []
    while reader.left:
        topic_filter = reader.text()
        check_topic_filter(topic_filter)
        filters.append(topic_filter)
    if not filters:
        raise ProtocolError("UNSUBSCRIBE names no filter [MQTT-3.10.3-2]")
    return packet_id, filters


def decode_packet_id(body: bytes) -> int:
    """The packet identifier that is all there is in PUBACK, PUBREC, PUBREL, PUBCOMP. Raises ProtocolError."""
    if len(body) != 2:
        raise ProtocolError("an acknowledgement must be two bytes long")
    return _u16.unpack(body)[0]  # type: ignore[no-any-return]  # struct cannot say that H is an int


def _packet_id(reader: _Reader) -> int:
    packet_id = reader.u16()
    if packet_id == 0:
        raise ProtocolError("packet identifier is 0 [MQTT-2.3.1-1]")
    return packet_id


def check_topic_name(topic: str) -> None:
    """Raises ProtocolError when nothing can be published to `topic`."""
    if not topic:
        raise ProtocolError("the topic is empty [MQTT-4.7.3-1]")
    if "+" in topic or "#" in topic:
        raise ProtocolError("the topic holds a wildcard [MQTT-3.3.2-2]")


def check_topic_filter(topic_filter: str) -> None:
    """Raises ProtocolError when nothing can match `topic_filter`."""
    if not topic_filter:
        raise ProtocolError("the filter is empty [MQTT-4.7.3-1]")
    if "+" not in topic_filter and "#" not in topic_filter:
        return
    levels = topic_filter.split("/")
    for level in levels:
        if len(level) > 1 and ("+" in level or "#" in level):
            raise ProtocolError("a wildcard is not a level of its own [MQTT-4.7.1-2], [MQTT-4.7.1-3]")
    if "#" in levels[:-1]:
        raise ProtocolError("# is not the last level [MQTT-4.7.1-2]")


def connack(code: int, *, session_present: bool = False) -> bytes:
    """Session Present is 0 unless the connection is accepted [MQTT-3.2.2-4]."""
    return bytes((CONNACK << 4, 2, session_present and code == ACCEPTED, code))


def puback(packet_id: int) -> bytes:
    return _ack(0x40, 2, packet_id)


def pubrec(packet_id: int) -> bytes:
    return _ack(0x50, 2, packet_id)


def pubrel(packet_id: int) -> bytes:
    return _ack(0x62, 2, packet_id)


def pubcomp(packet_id: int) -> bytes:
    return _ack(0x70, 2, packet_id)


def unsuback(packet_id: int) -> bytes:
    return _ack(0xB0, 2, packet_id)


def suback(packet_id: int, codes: list[int]) -> bytes:
    """One return code for each filter, in order [MQTT-3.9.3-1]."""
    return b"\x90" + remaining_length(2 + len(codes)) + _u16.pack(packet_id) + bytes(codes)


def publish(topic: bytes, payload: bytes, qos: int, retain: bool, packet_id: int = 0, dup: bool = False) -> bytes:
    """A PUBLISH; `packet_id` counts only with QoS 1 and 2."""
    first = 0x30 | dup << 3 | qos << 1 | retain
    if qos:
        length = remaining_length(len(topic) + len(payload) + 4)
        return b"%c%b%b%b%b%b" % (first, length, _u16.pack(len(topic)), topic, _u16.pack(packet_id), payload)
    return b"%c%b%b%b%b" % (
        first,
        remaining_length(len(topic) + len(payload) + 2),
        _u16.pack(len(topic)),
        topic,
        payload,
    )


def remaining_length(length: int) -> bytes:
    """The fixed header's variable length (MQTT 3.1.1, 2.2.3)."""
    if length < 128:
        return bytes((length,))
    encoded = bytearray()
    while True:
        length, digit = divmod(length, 128)
        encoded.append(digit | 0x80 if length else digit)
        if not length:
            return bytes(encoded)
