"""Payload formats beside JSON: CBOR and MessagePack, brought into the JSON text that readings are made of. Pure."""

from __future__ import annotations

import base64
import enum
import io
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import cbor2
import msgspec

from bridge.errors import RefusedError

MAX_DEPTH: Final = 64
"""Levels of nested maps and arrays."""


class Format(enum.StrEnum):
    """How a kind of devices writes its payloads."""

    JSON = "json"
    CBOR = "cbor"
    MSGPACK = "msgpack"
    AUTO = "auto"
    """Told by the first byte, see `format_of`."""


def format_of(payload: bytes) -> Format:
    """The format of a payload that holds an object or an array of objects, as its first byte says.

    No JSON text begins like a map or an array of the two others. 0xA0 to 0xBF is a map and 0xC0 to 0xDB a tag in CBOR,
    while in MessagePack neither is a map or array. 0xDC to 0xDF is an array or map in MessagePack and nothing in CBOR.
    0x80 to 0x9F may be either: it is taken for MessagePack, and a CBOR array must begin with the tag of self-described
    CBOR (RFC 8949, 3.4.6).
    """
    first = payload[0] if payload else 0
    if 0xA0 <= first <= 0xDB:
        return Format.CBOR
    if first >= 0x80:
        return Format.MSGPACK
    return Format.JSON


def to_json(payload: bytes, payload_format: Format) -> bytes:
    """The JSON text of a payload: numbers, texts, true, false and null as they are, byte strings as
    `{"$base64": "AAEC"}`, times as RFC 3339.

    Raises RefusedError: `not_cbor`, `not_msgpack`, and `wrong_type` for what JSON cannot hold, which is named with its
    place: NaN and infinities, whole numbers of more than 64 bits, keys that are no text, tags and extensions.
    """
    if payload_format is Format.AUTO:
        payload_format = format_of(payload)
    if payload_format is Format.JSON:
        return payload
    value = _from_cbor(payload) if payload_format is Format.CBOR else _from_msgpack(payload)
    return msgspec.json.encode(_plain(value, "", 0))


def _from_cbor(payload: bytes) -> Any:
    stream = io.BytesIO(payload)
    try:
        value = cbor2.CBORDecoder(stream).decode()
    except Exception as error:  # tags make it build dates, fractions, addresses … of whatever was sent
        raise RefusedError("not_cbor", f"{type(error).__name__}: {error}") from error
    if stream.tell() != len(payload):
        raise RefusedError("not_cbor", f"{len(payload) - stream.tell()} bytes follow the end")
    return value


def _from_msgpack(payload: bytes) -> Any:
    try:
        return msgspec.msgpack.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, OverflowError) as error:
        raise RefusedError("not_msgpack", str(error)) from error


def _plain(value: Any, place: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise RefusedError("too_deep", f"more than {MAX_DEPTH} levels")
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise RefusedError("wrong_type", f"{place or '/'}: a whole number of more than 64 bits")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RefusedError("wrong_type", f"{place or '/'}: {value} has no form in JSON")
        return value
    if isinstance(value, Mapping):  # cbor2 makes some that are no dict
        return {_key(key, place): _plain(item, f"{place}/{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{place}/{index}", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, (bytes, bytearray)):
        return {"$base64": base64.b64encode(value).decode()}
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.isoformat()
    raise RefusedError("wrong_type", f"{place or '/'}: a value of type {type(value).__name__} has no form in JSON")


def _key(key: Any, place: str) -> str:
    if not isinstance(key, str):
        raise RefusedError("wrong_type", f"{place or '/'}: the key {str(key)[:40]!r} is no text")
    return key
