"""Telemetry payloads: what is taken, and for each kind of rubbish the reason it is refused with."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import RefusedError
from bridge.readings import Reading, decode

NOW = 1_790_000_000.0


def one(payload: bytes) -> Reading:
    reading = decode(payload, NOW)
    assert isinstance(reading, Reading)
    return reading


def test_a_reading_without_a_time_has_the_time_of_its_arrival() -> None:
    assert one(b'{"temperature": 4.2}') == Reading(NOW, None, '{"temperature": 4.2}')


def test_the_payload_is_kept_as_it_was_sent() -> None:
    payload = '{ "ts":1789999999.25, "id":"a1","v": 1e2,"big":123456789012345678901234567890, "s":"ü\\u0000" }'
    reading = one(payload.encode())
    assert reading == Reading(1_789_999_999.25, "a1", payload)


@pytest.mark.parametrize(
    ("ts", "seconds"),
    [
        ("1262304000", 1_262_304_000.0),
        ('"2010-01-01T00:00:00Z"', 1_262_304_000.0),
        ('"2010-01-01T01:00:00+01:00"', 1_262_304_000.0),
        ('"2010-01-01T00:00:00.500Z"', 1_262_304_000.5),
        (f"{NOW + 86_400}", NOW + 86_400),
    ],
)
def test_times_are_unix_seconds_or_rfc_3339(ts: str, seconds: float) -> None:
    assert one(f'{{"ts": {ts}}}'.encode()).ts == seconds


def test_a_number_as_id_is_taken_as_text() -> None:
    assert one(b'{"id": 17}').message_id == "17"


def test_a_batch_is_several_readings() -> None:
    readings = decode(b' [{"t":1,"ts":1789999990,"id":"a"}, {"t":2}]', NOW)
    assert readings == [
        Reading(1_789_999_990.0, "a", '{"t":1,"ts":1789999990,"id":"a"}'),
        Reading(NOW, None, '{"t":2}'),
    ]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not_json"),
        (b"hello", "not_json"),
        (b'{"t": 4.2', "not_json"),
        (b'{"t": 4.2} x', "not_json"),
        (b'{"t": NaN}', "not_json"),
        (b'{"t": Infinity}', "not_json"),
        (b'{"t": 01}', "not_json"),
        (b"{t: 1}", "not_json"),
        (b'{"t": "\xff"}', "not_utf8"),
        (b"4.2", "wrong_type"),
        (b'"text"', "wrong_type"),
        (b"null", "wrong_type"),
        (b"[1, 2]", "wrong_type"),
        (b'{"ts": []}', "wrong_type"),
        (b'{"ts": true}', "wrong_type"),
        (b'{"id": {}}', "wrong_type"),
        (b"[]", "empty_batch"),
        (b'{"ts": "40000-01-01T00:00:00Z"}', "bad_time"),
        (b'{"ts": 1200000000000}', "bad_time"),
        (b'{"ts": 1790086401}', "bad_time"),
        (b'{"ts": 0}', "bad_time"),
        (b'{"ts": -1e300}', "bad_time"),
        (b'{"ts": "yesterday"}', "bad_time"),
        (b'{"ts": "2010-01-01T00:00:00"}', "bad_time"),
        (b'{"id": ""}', "bad_id"),
        (b'{"id": "' + b"x" * 129 + b'"}', "bad_id"),
        (b'{"id": "a\\u0000b"}', "bad_id"),
        (b'{"a":' * 100_000, "too_deep"),
        (b"[" * 100_000, "too_deep"),
    ],
)
def test_rubbish_is_refused_with_its_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(RefusedError) as refused:
        decode(payload, NOW)
    assert refused.value.reason == reason


def test_milliseconds_get_a_hint() -> None:
    with pytest.raises(RefusedError, match="milliseconds"):
        decode(b'{"ts": 1789999999000}', NOW)


def test_a_batch_names_the_bad_element() -> None:
    with pytest.raises(RefusedError, match="element 1") as refused:
        decode(b'[{"t":1},{"ts":"never"}]', NOW)
    assert refused.value.reason == "bad_time"


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(payload: bytes) -> None:
    try:
        decoded = decode(payload, NOW)
    except RefusedError:
        return
    for reading in [decoded] if isinstance(decoded, Reading) else decoded:
        assert isinstance(msgspec.json.decode(reading.payload), dict)


@given(
    st.dictionaries(
        st.text(max_size=10),
        st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10),
        max_size=8,
    )
)
def test_any_object_is_kept_whole(values: dict[str, object]) -> None:
    values = {name: value for name, value in values.items() if name not in ("ts", "id")}
    assert msgspec.json.decode(one(msgspec.json.encode(values)).payload) == values
