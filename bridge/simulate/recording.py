"""Recorded data in a CSV file: which column is the time, what the others measured, and when that was in UTC."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections.abc import Iterator
from datetime import datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from _csv import Reader

import msgspec

from bridge.errors import BridgeError
from bridge.readings import EARLIEST

TIME_COLUMNS: Final = ("timestamp", "datetime", "date", "time")
_RESERVED: Final = ("id", "ts")
# As people write them; Python's own float() also takes 1_000 and infinity.
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class RecordingError(BridgeError):
    """A file cannot be replayed. Its text names the file and, where there is one, the line."""


class Recorded(NamedTuple):
    """One line of a file: `ts` in Unix seconds; a column without a value is left out of `values`."""

    ts: float
    values: dict[str, float | str]

    def payload(self) -> bytes:
        """The reading as it is published. Its id is made from what it says, so a second replay stores nothing."""
        digest = hashlib.blake2b(msgspec.json.encode(self.values, order="sorted"), digest_size=6).hexdigest()
        return msgspec.json.encode({"id": f"{self.ts:.15g}-{digest}", "ts": self.ts, **self.values})


def read(path: Path, zone: tzinfo) -> Iterator[Recorded]:
    """The lines of a file in their order. Times without an offset are local times of `zone`.

    Raises RecordingError.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from _rows(path, csv.reader(file, strict=True), zone)
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecordingError(f"{path} is not UTF-8: {error}") from error
    except csv.Error as error:
        raise RecordingError(f"{path} is not CSV: {error}") from error


def _rows(path: Path, lines: Reader, zone: tzinfo) -> Iterator[Recorded]:
    header = [name.strip() for name in next(lines, [])]
    clock = _time_column(path, header)
    before = -math.inf
    for line in lines:
        if not line:
            continue
        where = f"{path}, line {lines.line_num}"
        if len(line) != len(header):
            raise RecordingError(f"{where}: {len(line)} fields, the header has {len(header)}")
        ts = before = _instant(where, line[clock].strip(), zone, before)
        pairs = ((name, _value(text.strip())) for name, text in zip(header, line, strict=True))
        yield Recorded(ts, {name: value for name, value in pairs if value is not None and name != header[clock]})


def _time_column(path: Path, header: list[str]) -> int:
    names = [name.lower() for name in header]
    times = [index for index, name in enumerate(names) if name in TIME_COLUMNS]
    if len(times) != 1:
        found = ", ".join(header[index] for index in times) or "none"
        raise RecordingError(
            f"{path}: one column must be the time, named one of {', '.join(TIME_COLUMNS)}; found: {found}"
        )
    if len(set(header)) != len(header) or "" in header:
        raise RecordingError(f"{path}: every column needs a name of its own, not {', '.join(map(repr, header))}")
    for name in _RESERVED:
        if name in header:
            raise RecordingError(f"{path}: rename the column {name!r}: in a reading that word means something else")
    return times[0]


def _instant(where: str, text: str, zone: tzinfo, before: float) -> float:
    """The instant that `text` names, in Unix seconds; `before` is that of the line before.

    Of a local time that does not exist (the hour skipped in spring) the offset before the change is taken; of one
    that exists twice (in autumn) the first, or the second where the first would not be later than the line before.
    """
    if _NUMBER.fullmatch(text) and float(text) >= EARLIEST:
        return float(text)
    try:
        moment = datetime.fromisoformat(text.replace("/", "-"))
    except ValueError as error:
        raise RecordingError(
            f"{where}: {text!r} is no time: use YYYY/MM/DD hh:mm[:ss], ISO 8601 or Unix seconds"
        ) from error
    if moment.tzinfo is not None:
        return moment.timestamp()
    first = moment.replace(tzinfo=zone, fold=0).timestamp()
    second = moment.replace(tzinfo=zone, fold=1).timestamp()
    return second if second > first and first <= before else first


def _value(text: str) -> float | str | None:
    """A number if it is one, else the text; None for nothing and for not-a-number."""
    if not text or text.lower() == "nan":
        return None
    if not _NUMBER.fullmatch(text) or not math.isfinite(number := float(text)):
        return text
    return int(text) if text.lstrip("+-").isdigit() and abs(number) < 2**53 else number
