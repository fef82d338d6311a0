"""The last reading of each stream of a device."""

from __future__ import annotations

from typing import Final, final

import msgspec

MAX_STREAMS: Final = 64
"""Streams of one device whose last values are kept; readings of further ones are stored all the same."""


@final
class Latest:
    """A stream's last reading: measured at `ts` (Unix seconds), the JSON as it was sent."""

    __slots__ = ("payload", "ts")

    def __init__(self, ts: float, payload: str) -> None:
        self.ts = ts
        self.payload = payload


class _State(msgspec.Struct):
    streams: dict[str, tuple[float, msgspec.Raw]] = {}


_decoder: Final = msgspec.json.Decoder(_State)


@final
class Streams(dict[str, Latest]):
    """By the name of the stream."""

    __slots__ = ()

    @classmethod
    def stored(cls, state: str) -> Streams:
        """As `as_json` has written them; an empty text stands for none."""
        if not state:
            return cls()
        found = _decoder.decode(state).streams
        return cls({name: Latest(ts, bytes(values).decode()) for name, (ts, values) in found.items()})

    def as_json(self) -> str:
        """As they are stored with the device."""
        state = _State({name: (latest.ts, msgspec.Raw(latest.payload)) for name, latest in self.items()})
        return msgspec.json.encode(state).decode()

    def keep(self, stream: str, ts: float, payload: str) -> None:
        """Take a reading's values, unless later ones are kept."""
        latest = self.get(stream)
        if latest is None:
            if len(self) < MAX_STREAMS:
                self[stream] = Latest(ts, payload)
        elif ts >= latest.ts:
            latest.ts = ts
            latest.payload = payload
