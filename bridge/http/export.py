"""Readings as a file: CSV, NDJSON or Parquet, as long as it takes and never more than a page of them in memory."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Annotated, Any, Final, Literal, Protocol, final

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from bridge.errors import RefusedError
from bridge.http import models
from bridge.http.context import Context
from bridge.http.devices import DeviceId
from bridge.http.telemetry import Moment, Stream, seconds
from bridge.storage import telemetry
from bridge.storage.telemetry import StoredReading

PAGE: Final = 500
"""Readings in memory at once."""

OWN: Final = ("ts", "id")
"""Keys of a reading that are columns of every file: its time, and its `message_id`."""

Format = Literal["csv", "ndjson", "parquet"]
MEDIA_TYPES: Final[dict[Format, str]] = {
    "csv": "text/csv; charset=utf-8",
    "ndjson": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
}
RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The file.",
        "content": {
            "text/csv": {
                "schema": {"type": "string"},
                "example": "ts,received_at,message_id,temperature,other\r\n"
                "2026-01-01T00:00:00+00:00,2026-01-01T00:00:00.100000+00:00,,4.2,\r\n",
            },
            "application/x-ndjson": {"schema": {"type": "string"}},
            "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


class Writer(Protocol):
    """Turns pages of readings into pieces of a file."""

    def page(self, readings: Sequence[StoredReading]) -> bytes:
        """The next piece."""
        ...

    def end(self) -> bytes:
        """The last piece."""
        ...


class FileResponse(StreamingResponse):
    """A file that is made while it is sent."""

    media_type = "application/octet-stream"


def routes(context: Context) -> APIRouter:
    """`/devices/{device_id}/telemetry/export`."""
    api = APIRouter(tags=["telemetry"])

    @api.get("/devices/{device_id}/telemetry/export", response_class=FileResponse, responses=RESPONSES)
    async def export(
        device_id: DeviceId,
        format: Format = "csv",
        stream: Stream = "default",
        since: Moment = None,
        until: Moment = None,
        field: Annotated[
            list[Annotated[str, Query(min_length=1, max_length=256)]],
            Query(max_length=100, description="CSV: only these keys of the readings, a column for each."),
        ] = [],  # noqa: B006 - FastAPI copies it
    ) -> FileResponse:
        """Readings of a stream with since <= ts < until, the oldest first, as a file.

        CSV has a column for each key of the first 500 readings, and `other` with what has no column, as JSON; text that
        a spreadsheet would take for a formula has a `'` before it. NDJSON and Parquet have the values as JSON. If the
        database goes away on the way the answer is cut off, which clients report.
        """
        start, end = seconds(since), seconds(until)

        async def page(last: tuple[float, int] | None) -> list[StoredReading]:
            return await context.database.read(
                lambda connection: telemetry.readings(
                    connection, device_id, stream, start, end, PAGE, last, oldest_first=True
                )
            )

        writer = await asyncio.to_thread(_writer, format, tuple(field))
        # Before the answer begins: it can still say what is wrong.
        first = await page(None)
        name = f"{device_id}-{stream}.{format}".replace("/", "-").replace(":", "-")
        return FileResponse(
            _pieces(writer, first, page),
            media_type=MEDIA_TYPES[format],
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )

    return api


async def _pieces(
    writer: Writer,
    readings: list[StoredReading],
    page: Callable[[tuple[float, int]], Awaitable[list[StoredReading]]],
) -> AsyncIterator[bytes]:
    while True:
        # A page takes milliseconds, and Parquet's compression more: not on the loop that acknowledges messages.
        yield await asyncio.to_thread(writer.page, readings)
        if len(readings) < PAGE:
            break
        readings = await page((readings[-1].ts, readings[-1].id))
    yield await asyncio.to_thread(writer.end)


def _writer(format: Format, fields: tuple[str, ...]) -> Writer:
    if format == "csv":
        return _Csv(fields)
    return _Ndjson() if format == "ndjson" else _Parquet()


@final
class _Csv:
    """RFC 4180, with a heading."""

    def __init__(self, fields: tuple[str, ...]) -> None:
        self._fields = fields
        self._chosen = bool(fields)
        self._begun = False

    def page(self, readings: Sequence[StoredReading]) -> bytes:
        values = [models.decoded(reading.payload) for reading in readings]
        text = io.StringIO()
        rows = csv.writer(text)
        if not self._begun:
            self._begun = True
            if not self._chosen:
                objects = (value for value in values if isinstance(value, dict))
                self._fields = tuple(dict.fromkeys(key for value in objects for key in value if key not in OWN))
            heading = ["ts", "received_at", "message_id", *map(_cell, self._fields)]
            rows.writerow(heading if self._chosen else [*heading, "other"])
        for reading, value in zip(readings, values, strict=True):
            row = [*_times(reading), _cell(reading.message_id)]
            known = value if isinstance(value, dict) else {}
            row += [_cell(known.get(field)) for field in self._fields]
            if not self._chosen:
                row.append(_other(value, self._fields))
            rows.writerow(row)
        return text.getvalue().encode("utf-8", "replace")

    def end(self) -> bytes:
        return b""


def _other(value: Any, fields: tuple[str, ...]) -> str:
    if isinstance(value, dict):
        value = {key: inner for key, inner in value.items() if key not in fields and key not in OWN}
        if not value:
            return ""
    return _json(value)


def _cell(value: Any) -> str:
    """A value as text. What a spreadsheet would run as a formula it must not: devices are strangers."""
    if isinstance(value, str):
        return "'" + value if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return "" if value is None else _json(value)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


@final
class _Ndjson:
    """A JSON object a line."""

    def page(self, readings: Sequence[StoredReading]) -> bytes:
        lines = (
            {
                "ts": ts,
                "received_at": received_at,
                "message_id": reading.message_id,
                "values": models.decoded(reading.payload),
            }
            for reading in readings
            for ts, received_at in [_times(reading)]
        )
        return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)

    def end(self) -> bytes:
        return b""


def _times(reading: StoredReading) -> tuple[str, str]:
    return models.moment(reading.ts).isoformat(), models.moment(reading.received_at).isoformat()


@final
class _Parquet:
    """A row group for each page."""

    def __init__(self) -> None:
        """Raises RefusedError where pyarrow is not installed."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise RefusedError(
                "no_pyarrow", "Parquet needs pyarrow where the bridge runs: install mqtt-agent-bridge[parquet]"
            ) from error
        moment = pa.timestamp("us", tz="UTC")
        self._schema = pa.schema(
            [("ts", moment), ("received_at", moment), ("message_id", pa.string()), ("values", pa.string())]
        )
        self._made = _Made()
        self._file = pq.ParquetWriter(self._made, self._schema, compression="zstd")
        self._table = partial(pa.Table.from_pydict, schema=self._schema)

    def page(self, readings: Sequence[StoredReading]) -> bytes:
        if readings:
            columns = {
                "ts": [models.moment(reading.ts) for reading in readings],
                "received_at": [models.moment(reading.received_at) for reading in readings],
                "message_id": [reading.message_id for reading in readings],
                "values": [reading.payload for reading in readings],
            }
            self._file.write_table(self._table(columns))
        return self._made.take()

    def end(self) -> bytes:
        self._file.close()
        return self._made.take()


@final
class _Made(io.RawIOBase):
    """A file whose beginning is taken away while its end is written."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self._pieces.append(bytes(piece))
        self._size += len(self._pieces[-1])
        return len(self._pieces[-1])

    def tell(self) -> int:
        return self._size

    def take(self) -> bytes:
        """What was written since the last call."""
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken
