"""`mqtt-bridge telemetry`: a device's readings as a table, with a line of how each number went."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from bridge.cli import terminal
from bridge.cli.api import connect
from bridge.cli.completion import device_ids
from bridge.cli.terminal import JsonOption

BARS: Final = "▁▂▃▄▅▆▇█"
WIDTH: Final = 60
"""Characters of a sparkline at most."""
PAGE: Final = 1_000
UNITS: Final = {"s": 1, "min": 60, "m": 60, "h": 3_600, "d": 86_400}


def telemetry(
    device: Annotated[str, typer.Argument(help="The device's id.", autocompletion=device_ids)],
    stream: Annotated[str, typer.Option(help="A stream, or event/KIND.")] = "default",
    field: Annotated[list[str] | None, typer.Option(help="Only this field; may be given again.")] = None,
    since: Annotated[
        str | None, typer.Option(help="From then on: RFC 3339, or so long ago, such as 90s, 15min, 6h, 2d.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="The latest so many.")] = 50,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a device's readings, the oldest first, and how each of its numbers went."""
    if as_csv and as_json:
        raise typer.BadParameter("give either --csv or --json", param_hint="--csv")
    begin = None if since is None else moment(since, datetime.now(UTC))
    readings = _fetch(device, stream, begin, limit)
    if as_json:
        print(json.dumps([_picked(reading, field) for reading in readings], ensure_ascii=False))
        return
    columns = field or _fields(readings)
    rows = [[_value(reading, column) for column in columns] for reading in readings]
    if as_csv:
        print(_csv(columns, readings, rows), end="")
        return
    screen = terminal.console()
    if not readings:
        screen.print(
            terminal.text(f"{device} has sent nothing to the stream {stream}{' since then' if begin else ''}.")
        )
        return
    times = [terminal.local(reading["ts"], "%Y-%m-%d %H:%M:%S") for reading in readings]
    screen.print(
        terminal.table(("at", *columns), ((at, *map(_shown, row)) for at, row in zip(times, rows, strict=True)))
    )
    for column, values in zip(columns, zip(*rows, strict=True), strict=True):
        numbers = [value for value in values if _is_number(value)]
        if len(numbers) > 1:
            line = f"{column}  {sparkline(numbers)}  {min(numbers):g} to {max(numbers):g}"
            screen.print(terminal.text(line))


def moment(text: str, now: datetime) -> datetime:
    """A time as the user gives it: RFC 3339 (local if it has no zone), or how long before `now`."""
    ago = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(s|min|m|h|d)", text)
    if ago is not None:
        return now - timedelta(seconds=float(ago[1]) * UNITS[ago[2]])
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is neither RFC 3339 nor such as 15min or 6h", param_hint="--since"
        ) from error


def sparkline(numbers: Sequence[float], width: int = WIDTH) -> str:
    """Numbers as a line of bars, from the lowest to the highest; of more than `width` the means of neighbours."""
    if len(numbers) > width:
        edges = [len(numbers) * step // width for step in range(width + 1)]
        numbers = [sum(numbers[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(numbers), max(numbers)
    if high == low:
        return BARS[len(BARS) // 2 - 1] * len(numbers)
    return "".join(BARS[min(int((number - low) / (high - low) * len(BARS)), len(BARS) - 1)] for number in numbers)


def _fetch(device: str, stream: str, since: datetime | None, limit: int) -> list[dict[str, Any]]:
    """The latest `limit` readings, the oldest first."""
    found: list[dict[str, Any]] = []
    after = ""
    with connect() as api:
        while len(found) < limit:
            wanted: dict[str, Any] = {"stream": stream, "limit": min(PAGE, limit - len(found)), "after": after}
            if since is not None:
                wanted["since"] = since.isoformat()
            page = api.get(f"/api/v1/devices/{quote(device, safe='')}/telemetry", wanted)
            found += page["readings"]
            after = page["next"] or ""
            if not after:
                break
    return found[::-1]


def _fields(readings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every key of the readings, in the order of their first appearance, without what names the reading itself."""
    values = [reading["values"] for reading in readings]
    return list(
        dict.fromkeys(key for value in values if isinstance(value, dict) for key in value if key not in ("id", "ts"))
    )


def _value(reading: Mapping[str, Any], field: str) -> Any:
    values = reading["values"]
    return values.get(field) if isinstance(values, dict) else None


def _picked(reading: Mapping[str, Any], fields: Sequence[str] | None) -> dict[str, Any]:
    if not fields:
        return dict(reading)
    return {**reading, "values": {field: _value(reading, field) for field in fields}}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _csv(columns: Sequence[str], readings: Sequence[Mapping[str, Any]], rows: Sequence[Sequence[Any]]) -> str:
    """RFC 4180, but with line feeds alone; what is no number or text is JSON."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("ts", *columns))
    for reading, row in zip(readings, rows, strict=True):
        cells = (json.dumps(cell) if isinstance(cell, dict | list | bool) else cell for cell in row)
        writer.writerow((reading["ts"], *cells))
    return out.getvalue()
