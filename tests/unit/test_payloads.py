"""CBOR and MessagePack: the same readings as from JSON, or a refusal that says why."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import RefusedError
from bridge.payloads import Format, format_of, to_json
from bridge.profiles import Profile
from bridge.readings import Reading, decode
from bridge.schemas import Schema

NOW = 1_700_000_000.0
MEASURED: dict[str, Any] = {
    "ts": 1_699_999_999.5, "id": 7, "unit": "°C", "t": -0.5, "n": 2**63, "m": -(2**63), "ok": True, "no": None,
    "deep": {"list": [1, "two", {"three": 3.0}]},
}  # fmt: skip


def cbor(value: Any) -> bytes:
    return bytes(cbor2.dumps(value))


ENCODERS: dict[Format, Callable[[Any], bytes]] = {
    Format.JSON: msgspec.json.encode,
    Format.CBOR: cbor,
    Format.MSGPACK: msgspec.msgpack.encode,
}


def refusal(payload: bytes, payload_format: Format) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        decode(to_json(payload, payload_format), NOW)
    return caught.value


@pytest.mark.parametrize("payload_format", ENCODERS)
def test_values_time_and_id_are_the_same_in_all_formats(payload_format: Format) -> None:
    encoded = ENCODERS[payload_format](MEASURED)
    for told in (payload_format, Format.AUTO):
        reading = decode(to_json(encoded, told), NOW)
        assert isinstance(reading, Reading)
        assert (reading.ts, reading.message_id) == (1_699_999_999.5, "7")
        assert json.loads(reading.payload) == MEASURED
        assert isinstance(json.loads(reading.payload)["deep"]["list"][2]["three"], float)


@pytest.mark.parametrize("payload_format", ENCODERS)
def test_batches_in_all_formats(payload_format: Format) -> None:
    encoded = ENCODERS[payload_format]([{"t": n} for n in range(40)])
    readings = decode(to_json(encoded, payload_format), NOW)
    assert [json.loads(reading.payload)["t"] for reading in readings] == list(range(40))  # type: ignore[union-attr]  # a list


def test_the_first_byte_tells_the_format() -> None:
    assert format_of(b"") is format_of(b" {}") is format_of(b"[{}]") is Format.JSON
    assert format_of(cbor({"a": 1})) is Format.CBOR
    assert format_of(cbor({str(n): n for n in range(300)})) is Format.CBOR
    assert format_of(bytes.fromhex("d9d9f7") + cbor([{"a": 1}])) is Format.CBOR
    values: list[Any] = [{"a": 1}, {str(n): n for n in range(300)}, [{"a": 1}], [{}] * 20, [{}] * 70_000]
    for value in values:
        assert format_of(msgspec.msgpack.encode(value)) is Format.MSGPACK
    assert to_json(bytes.fromhex("d9d9f7") + cbor([{"a": 1}]), Format.AUTO) == b'[{"a":1}]'


def test_bytes_and_times_have_a_form_in_json() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    for encode in (cbor, msgspec.msgpack.encode):
        payload_format = Format.CBOR if encode is cbor else Format.MSGPACK
        assert json.loads(to_json(encode({"raw": b"\0\1\2", "at": moment}), payload_format)) == {
            "raw": {"$base64": "AAEC"},
            "at": "2026-01-02T03:04:05+00:00",
        }


@pytest.mark.parametrize(
    ("payload", "payload_format", "reason", "said"),
    [
        (cbor({"a": {"b": float("nan")}}), Format.CBOR, "wrong_type", "/a/b: nan"),
        (msgspec.msgpack.encode({"a": [1, float("-inf")]}), Format.MSGPACK, "wrong_type", "/a/1: -inf"),
        (cbor({"a": 2**64}), Format.CBOR, "wrong_type", "/a: a whole number of more than 64 bits"),
        (cbor({1: 2}), Format.CBOR, "wrong_type", "the key '1' is no text"),
        (msgspec.msgpack.encode({"a": {b"k": 2}}), Format.MSGPACK, "wrong_type", "/a: the key"),
        (msgspec.msgpack.encode({"a": msgspec.msgpack.Ext(5, b"x")}), Format.MSGPACK, "wrong_type", "type Ext"),
        (cbor({"a": cbor2.CBORTag(4711, 1)}), Format.CBOR, "wrong_type", "type CBORTag"),
        (cbor({"a": 1}) + b"\0", Format.CBOR, "not_cbor", "1 bytes follow the end"),
        (msgspec.msgpack.encode({"a": 1}) + b"\0", Format.MSGPACK, "not_msgpack", "trailing"),
        (cbor({"a": 1})[:-1], Format.CBOR, "not_cbor", ""),
        (b"\x81\xa1a" * 100 + b"\0", Format.MSGPACK, "too_deep", "64"),
        (cbor("text"), Format.CBOR, "wrong_type", "object"),
        (cbor({"ts": "yesterday"}), Format.CBOR, "bad_time", "yesterday"),
        (msgspec.msgpack.encode([]), Format.MSGPACK, "empty_batch", ""),
    ],
)
def test_what_cannot_be_taken_says_why(payload: bytes, payload_format: Format, reason: str, said: str) -> None:
    error = refusal(payload, payload_format)
    assert (error.reason, said in str(error)) == (reason, True), error


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.just(UTC)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.binary(), inner),
    max_leaves=20,
)


@given(payload=st.binary(max_size=200) | VALUES.map(cbor), payload_format=st.sampled_from(Format))
def test_any_bytes_are_readings_or_a_refusal(payload: bytes, payload_format: Format) -> None:
    profile = Profile(format=payload_format, schemas={"*": Schema({"maxProperties": 3})})
    with contextlib.suppress(RefusedError):
        found = profile.decode(payload, "default", NOW)
        for reading in [found] if isinstance(found, Reading) else found:
            assert isinstance(json.loads(reading.payload), dict)


# ---------------------------------------------------------------------- schemas

FREEZER = Schema(
    {
        "type": "object",
        "required": ["temperature"],
        "properties": {"temperature": {"type": "number", "maximum": 60}, "a/b~c": {"items": {"type": "integer"}}},
    }
)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b'{"temperature": "warm"}', '/temperature: "warm" is not of type "number"'),
        (b'{"temperature": 61}', "/temperature: 61 is greater than the maximum of 60"),
        (b'{"temperature": 1, "a/b~c": [1, "x"]}', '/a~1b~0c/1: "x" is not of type "integer"'),
        (b"{}", '/: "temperature" is a required property'),
        (b'[{"temperature": 1}, {"temperature": null}]', '/1/temperature: null is not of type "number"'),
    ],
)
def test_the_wrong_field_is_named(payload: bytes, said: str) -> None:
    with pytest.raises(RefusedError) as caught:
        Profile(schemas={"default": FREEZER}).decode(payload, "default", NOW)
    assert caught.value.reason == "schema"
    assert str(caught.value) == said


def test_a_schema_is_for_its_stream() -> None:
    profile = Profile(schemas={"default": FREEZER})
    profile.decode(b'{"door": "open"}', "event/door", NOW)
    profile.decode(b'{"temperature": 4}', "default", NOW)
    with pytest.raises(RefusedError):
        Profile(schemas={"*": FREEZER}).decode(b"{}", "event/door", NOW)
