"""What a telemetry payload must look like, and the readings in it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, final

import msgspec

from bridge.errors import RefusedError

MAX_MESSAGE_ID: Final = 128
EARLIEST: Final = 315_532_800.0
"""1980-01-01: a clock that says an earlier time was never set."""
LATEST_AHEAD: Final = 86_400.0
"""How far, in seconds, a device's clock may be ahead of the bridge's."""


@final
class Reading(msgspec.Struct, frozen=True):
    """One set of measurements: `ts` in Unix seconds, `message_id` if the device gave one, the JSON as it was sent."""

    ts: float
    message_id: str | None
    payload: str


class _Envelope(msgspec.Struct):
    # Only what the bridge itself reads: the decoder checks the rest of the object and skips over it.
    ts: int | float | str | None = None
    id: str | int | None = None


_object: Final = msgspec.json.Decoder(_Envelope).decode
_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


def decode(payload: bytes, received_at: float) -> Reading | list[Reading]:
    """The reading in `payload`, or the readings when it is a batch (a JSON array).

    Raises RefusedError: `not_utf8`, `not_json`, `wrong_type`, `too_deep`, `bad_time`, `bad_id`, `empty_batch`.
    A batch is taken whole or not at all.
    """
    try:
        if not payload.startswith(b"{") and payload.lstrip().startswith(b"["):
            return _batch(payload, received_at)
        return _reading(payload, received_at)
    except msgspec.ValidationError as error:
        raise RefusedError("wrong_type", str(error)) from error
    except msgspec.DecodeError as error:
        raise RefusedError("not_json", str(error)) from error
    except UnicodeDecodeError as error:
        raise RefusedError("not_utf8", f"byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise RefusedError("too_deep", "the JSON is nested too deeply") from error


def numbered(decoded: Reading | list[Reading], name: str) -> Reading | list[Reading]:
    """The same readings; those without a message id get one made from `name`."""
    if isinstance(decoded, Reading):
        return decoded if decoded.message_id else msgspec.structs.replace(decoded, message_id=name)
    return [
        reading if reading.message_id else msgspec.structs.replace(reading, message_id=f"{name}-{index}")
        for index, reading in enumerate(decoded)
    ]


def _reading(payload: bytes, received_at: float) -> Reading:
    envelope = _object(payload)
    ts = envelope.ts
    message_id = envelope.id
    return Reading(
        received_at if ts is None else _time(ts, received_at),
        None if message_id is None else _message_id(message_id),
        payload.decode(),
    )


def _batch(payload: bytes, received_at: float) -> list[Reading]:
    readings = []
    for index, raw in enumerate(_array(payload)):
        try:
            readings.append(_reading(bytes(raw), received_at))
        except RefusedError as error:
            raise RefusedError(error.reason, f"element {index}: {error}") from error
        except msgspec.ValidationError as error:
            raise RefusedError("wrong_type", f"element {index}: {error}") from error
    if not readings:
        raise RefusedError("empty_batch", "the array holds no readings")
    return readings


def _time(ts: float | str, received_at: float) -> float:
    seconds = _rfc3339(ts) if isinstance(ts, str) else float(ts)
    if not EARLIEST <= seconds <= received_at + LATEST_AHEAD:
        hint = " (milliseconds? send seconds)" if EARLIEST <= seconds / 1000 <= received_at + LATEST_AHEAD else ""
        raise RefusedError("bad_time", f"ts {ts!r} is before 1980 or more than a day ahead{hint}")
    return seconds


def _rfc3339(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise RefusedError("bad_time", f"ts {text[:64]!r} is neither Unix seconds nor RFC 3339") from error
    if moment.tzinfo is None:
        raise RefusedError("bad_time", f"ts {text[:64]!r} has no time zone: end it with Z or an offset")
    return moment.timestamp()


def _message_id(message_id: Any) -> str:
    text = str(message_id)
    if not 0 < len(text) <= MAX_MESSAGE_ID or "\0" in text:
        raise RefusedError("bad_id", f"id must have 1 to {MAX_MESSAGE_ID} characters, none of them NUL")
    return text
