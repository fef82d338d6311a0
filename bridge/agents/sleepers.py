"""Agents that sleep and belong to no connection: each is one compact value, from which its device is made again."""

from __future__ import annotations

from typing import Any, Final, final

import msgspec

from bridge.storage.devices import DeviceSnapshot

_ENDING: Final = "]}}"
_WHOLE: Final = 3
"""The place of the beginning that fits any state."""

_encode_into: Final = msgspec.msgpack.Encoder().encode_into
_decode: Final = msgspec.msgpack.Decoder(list[Any]).decode


def _beginnings(last_seen: float) -> tuple[str, ...]:
    """How a state may begin; the first that fits is kept as its place in here. Most devices have one stream, and were
    last heard with its last reading. The last one fits any state, and with it the ending is kept as well."""
    return f'{{"streams":{{"default":[{last_seen!r},', '{"streams":{"default":[', '{"streams":{"', ""


@final
class Sleepers:
    """The sleeping agents' states, by device.

    They leave memory in three steps, so that none carries a time of its own: with each `turn` the young ones become
    old, and the old ones leave, a few at a time, as `forget` is called. A state has thus slept through one whole time
    between two turns, and at most two and the time that the leaving takes.
    """

    __slots__ = ("_buffer", "_leaving", "_names", "_old", "_words", "_young")

    def __init__(self) -> None:
        self._young: dict[str, bytes] = {}
        self._old: dict[str, bytes] = {}
        self._leaving: dict[str, bytes] = {}
        self._buffer = bytearray()
        self._words: list[str] = []
        """Names of profiles, statuses and admissions, of which there are few."""
        self._names: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old) + len(self._leaving)

    def keep(self, snapshot: DeviceSnapshot) -> None:
        """Take over a device whose state is stored."""
        device_id, profile, first_seen, last_seen, messages, status, epoch, state, admission, twin_version = (
            msgspec.structs.astuple(snapshot)
        )
        beginnings = _beginnings(last_seen)
        kind = _WHOLE
        if state.endswith(_ENDING):
            kind = next(place for place, text in enumerate(beginnings) if state.startswith(text))
        beginning = beginnings[kind]
        rest = state[len(beginning) : -len(_ENDING)] if beginning else state
        number = self._number
        words = number(profile), number(status), number(admission)
        values = *words, first_seen, last_seen, messages, epoch, twin_version, kind, rest
        _encode_into(values, self._buffer)
        # A copy: what the encoder returns itself keeps the room that it was built in, half as much again.
        self._young[device_id] = bytes(self._buffer)

    def take(self, device_id: str) -> DeviceSnapshot | None:
        """Give a device back; None if it does not sleep here."""
        packed = (
            self._young.pop(device_id, None) or self._old.pop(device_id, None) or self._leaving.pop(device_id, None)
        )
        if packed is None:
            return None
        profile, status, admission, first_seen, last_seen, messages, epoch, twin_version, kind, rest = _decode(packed)
        beginning = _beginnings(last_seen)[kind]
        return DeviceSnapshot(
            device_id,
            self._words[profile],
            first_seen,
            last_seen,
            messages,
            self._words[status],
            epoch,
            beginning + rest + _ENDING if beginning else rest,
            self._words[admission],
            twin_version,
        )

    def turn(self) -> None:
        """So much time has passed as a state may sleep here. The old ones may leave."""
        leaving = self._leaving
        if leaving:
            leaving |= self._old
        else:
            self._leaving = self._old
        self._old = self._young
        self._young = {}

    def forget(self, most: int) -> int:
        """Have at most so many of those that may leave do so; how many did."""
        count = min(most, len(self._leaving))
        for _ in range(count):
            self._leaving.popitem()
        return count

    def _number(self, word: str) -> int:
        number = self._names.get(word)
        if number is None:
            number = self._names[word] = len(self._words)
            self._words.append(word)
        return number
