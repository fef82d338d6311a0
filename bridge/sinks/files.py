"""Sinks that write files: lines of JSON, or Parquet where pyarrow is installed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, final

import msgspec

from bridge.errors import SettingsError
from bridge.sinks.sink import Sink, SinkUnavailableError, envelope
from bridge.storage.committed import Record

_FIELDS: Final = ("id", "kind", "device_id", "name", "at", "stored_at", "data")


@final
class Lines(Sink):
    """Appends a line of JSON for each record to a file that is begun anew when it has `max_bytes`; of the full ones the
    newest `keep` stay (0: all). Delivered means synced to the disk. A line that a crash has cut off is ended first."""

    def __init__(self, folder: Path, name: str, max_bytes: int, keep: int, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._name = name
        self._max_bytes = max_bytes
        self._keep = keep
        self._clock = clock
        self._file: IO[bytes] | None = None

    async def deliver(self, records: Sequence[Record]) -> None:
        """Write and sync."""
        data = b"".join(msgspec.json.encode(envelope(record)) + b"\n" for record in records)
        try:
            await asyncio.to_thread(self._write, data)
        except OSError as error:
            await self.close()
            raise SinkUnavailableError(f"{self._folder}: {error.strerror}") from error

    def _write(self, data: bytes) -> None:
        file = self._file
        if file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{self._name}.ndjson"
            file = self._file = path.open("ab")
            if file.tell() and not _ends_with_newline(path):
                file.write(b"\n")
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        if file.tell() >= self._max_bytes:
            file.close()
            self._file = None
            full = self._folder / f"{self._name}.ndjson"
            full.replace(_free(self._folder, self._name, self._clock(), "ndjson"))
            self._remove_old()

    def _remove_old(self) -> None:
        if self._keep:
            for path in sorted(self._folder.glob(f"{self._name}-*.ndjson"))[: -self._keep]:
                path.unlink(missing_ok=True)

    async def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                return  # what it still held was not delivered, and comes again


@final
class Parquet(Sink):
    """Writes each delivery as a Parquet file of its own, which is there under its name when it is complete."""

    def __init__(self, folder: Path, name: str, keep: int, clock: Callable[[], float]) -> None:
        """Raises SettingsError where pyarrow is not installed."""
        try:
            import pyarrow.parquet as _  # noqa: F401 - asked for here, so that the first delivery is not the one to fail
        except ImportError as error:
            raise SettingsError("Parquet files need pyarrow: install mqtt-agent-bridge[parquet]") from error
        self._folder = folder
        self._name = name
        self._keep = keep
        self._clock = clock

    async def deliver(self, records: Sequence[Record]) -> None:
        """Write and sync one file."""
        try:
            await asyncio.to_thread(self._write, list(records))
        except OSError as error:
            raise SinkUnavailableError(f"{self._folder}: {error.strerror or error}") from error

    def _write(self, records: list[Record]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [(r.key, r.kind, r.device_id, r.name, r.at, r.stored_at, r.body) for r in records]
        columns: dict[str, Any] = dict(zip(_FIELDS, map(list, zip(*rows, strict=True)), strict=True))
        for name in ("at", "stored_at"):
            columns[name] = pa.array([int(value * 1_000_000) for value in columns[name]], pa.timestamp("us", tz="UTC"))
        self._folder.mkdir(parents=True, exist_ok=True)
        path = _free(self._folder, self._name, self._clock(), "parquet")
        part = path.with_suffix(".part")
        try:
            pq.write_table(pa.table(columns), part, compression="zstd")
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        if self._keep:
            for old in sorted(self._folder.glob(f"{self._name}-*.parquet"))[: -self._keep]:
                old.unlink(missing_ok=True)


def _free(folder: Path, name: str, now: float, suffix: str) -> Path:
    """A name that no file has; names sort as they were given."""
    moment = datetime.fromtimestamp(now, UTC)
    while (path := folder / f"{name}-{moment:%Y%m%dT%H%M%S.%f}Z.{suffix}").exists():
        moment = moment.replace(microsecond=(moment.microsecond + 1) % 1_000_000)
    return path


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
