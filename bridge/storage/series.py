"""One field of a stream over time, in at most so many points: for plots."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from sqlalchemy import Double, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

MAX_SCANNED: Final = 500_000
"""Readings that are looked at, the latest: more than that takes seconds, and has rollups."""
MAX_LEVELS: Final = 8


class Series(NamedTuple):
    """Points in the order of time: each is a time (Unix seconds, where its bucket begins), and min, max, mean, last and
    count of the values in the bucket.

    `step`: seconds of a bucket; 0 when every point is a reading. `source`: `readings`, `minutes` or `hours`.
    `truncated`: only the latest MAX_SCANNED readings were looked at.
    """

    step: float
    source: str
    truncated: bool
    ts: list[float]
    min: list[float]
    max: list[float]
    mean: list[float]
    last: list[float]
    counts: list[int]


def path_of(field: str) -> list[str]:
    """The keys that lead to a field: `field` is the key itself or, if it begins with a slash, a JSON Pointer
    (RFC 6901) through objects. Raises ValueError."""
    keys = [field]
    if field.startswith("/"):
        keys = [key.replace("~1", "/").replace("~0", "~") for key in field[1:].split("/")]
    if len(keys) > MAX_LEVELS or any(not key or '"' in key or "\\" in key or not key.isprintable() for key in keys):
        raise ValueError(f"a field is a key of at most {MAX_LEVELS} levels, without quotes and backslashes")
    return keys


# A value that is no number, or none that a double can hold, counts as none. True and false are 1 and 0.
_VALUE: Final = {
    "sqlite": (
        "CASE WHEN json_valid(payload) THEN CASE json_type(payload, :path)"
        " WHEN 'true' THEN 1.0 WHEN 'false' THEN 0.0"
        " WHEN 'integer' THEN CAST(json_extract(payload, :path) AS REAL)"
        " WHEN 'real' THEN json_extract(payload, :path) END END"
    ),
    # A text that holds an escaped NUL or half a surrogate pair cannot be looked into: whole pairs are taken out before
    # that is decided. Exponents of three digits may be more than a double can hold.
    "postgresql": (
        r"CASE WHEN payload::text ~* '\\u(0000|d[89a-f])'"
        r" AND regexp_replace(payload::text, '\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}', '', 'gi')"
        r" ~* '\\u(0000|d[89a-f])' THEN NULL"
        " ELSE CASE payload #>> CAST(:path AS text[]) WHEN 'true' THEN 1.0 WHEN 'false' THEN 0.0"
        " ELSE CASE WHEN json_typeof(payload #> CAST(:path AS text[])) = 'number'"
        " AND payload #>> CAST(:path AS text[]) ~* '^-?[0-9.]{1,40}(e[+-]?[0-9]{1,2})?$'"
        " THEN (payload #>> CAST(:path AS text[]))::float8 END END END"
    ),
}

_POINTS: Final = (
    "WITH points AS (SELECT ts, id, {value} AS value FROM"
    " (SELECT ts, id, payload FROM telemetry WHERE device_id = :device_id AND stream = :stream"
    " AND ts >= :since AND ts < :until ORDER BY ts DESC, id DESC LIMIT :scanned) AS latest)"
)
_RAW: Final = (
    _POINTS + " SELECT ts, value FROM points WHERE abs(value) < 1e308"  # noqa: S608 - constants of this module alone
    " ORDER BY ts, id LIMIT :points"
)
_BUCKETS: Final = (
    _POINTS + ", ranked AS (SELECT ts, value, floor(ts / :step) AS bucket,"  # noqa: S608 - constants of this module
    " row_number() OVER (PARTITION BY floor(ts / :step) ORDER BY ts DESC, id DESC) AS newest"
    " FROM points WHERE abs(value) < 1e308)"
    " SELECT bucket * :step AS ts, min(value) AS min, max(value) AS max, avg(value) AS mean,"
    " max(CASE WHEN newest = 1 THEN value END) AS last, count(*) AS count"
    " FROM ranked GROUP BY bucket ORDER BY bucket"
)
_ROLLED_UP: Final = (
    "WITH ranked AS (SELECT *, floor(start / :step) AS bucket,"
    " row_number() OVER (PARTITION BY floor(start / :step) ORDER BY last_ts DESC) AS newest"
    " FROM {table} WHERE device_id = :device_id AND stream = :stream AND field = :field"
    " AND start >= :since AND start < :until)"
    " SELECT bucket * :step AS ts, min(min) AS min, max(max) AS max, sum(sum) / sum(count) AS mean,"
    " max(CASE WHEN newest = 1 THEN last END) AS last, sum(count) AS count"
    " FROM ranked GROUP BY bucket ORDER BY bucket"
)
_COUNTED: Final = (
    "SELECT count(*) FROM (SELECT 1 FROM telemetry WHERE device_id = :device_id AND stream = :stream"
    " AND ts >= :since AND ts < :until LIMIT :scanned) AS counted"
)
_ROLLUPS: Final = (("hours", "telemetry_hour", 3_600.0), ("minutes", "telemetry_minute", 60.0))


async def series(
    connection: AsyncConnection, device_id: str, stream: str, field: str, since: float, until: float, points: int
) -> Series:
    """A field's values with since <= ts < until, in at most `points` points (at least 2, and one more at the edges).

    From the readings themselves while a bucket is shorter than a minute, else from the rollups, which are a few seconds
    behind and know the fields at the top level alone. Raises ValueError for what is no field.
    """
    keys = path_of(field)
    step = max((until - since) / points, 1e-3)
    if len(keys) == 1:
        for source, table, width in _ROLLUPS:
            if step >= width:
                # Whole rollups in each bucket, or it would jump.
                return await _rolled_up(
                    connection, source, table, math.ceil(step / width) * width, device_id, stream, keys[0], since, until
                )
    return await _from_readings(connection, device_id, stream, keys, since, until, points, step)


async def _rolled_up(
    connection: AsyncConnection,
    source: str,
    table: str,
    step: float,
    device_id: str,
    stream: str,
    field: str,
    since: float,
    until: float,
) -> Series:
    values = {"device_id": device_id, "stream": stream, "field": field, "step": step, "until": until}
    values["since"] = math.floor(since / step) * step
    rows = (await connection.execute(_statement(_ROLLED_UP.format(table=table)), values)).all()
    return _series(step, source, False, [tuple(row) for row in rows])


async def _from_readings(
    connection: AsyncConnection,
    device_id: str,
    stream: str,
    keys: list[str],
    since: float,
    until: float,
    points: int,
    step: float,
) -> Series:
    dialect = connection.dialect.name
    path: Any = keys if dialect == "postgresql" else "$" + "".join(f'."{key}"' for key in keys)
    values = {"device_id": device_id, "stream": stream, "since": since, "until": until, "scanned": MAX_SCANNED}
    raw = _statement(_RAW.format(value=_VALUE[dialect]))
    # To see whether there are few takes no longer than to have them.
    few = (await connection.execute(raw, {**values, "path": path, "points": points + 1})).all()
    if len(few) <= points:
        return _series(0.0, "readings", False, [(ts, value, value, value, value, 1) for ts, value in few])
    values["since"] = math.floor(since / step) * step
    buckets = _statement(_BUCKETS.format(value=_VALUE[dialect]))
    rows = (await connection.execute(buckets, {**values, "path": path, "step": step})).all()
    scanned = (await connection.execute(_statement(_COUNTED), values)).scalar_one()
    return _series(step, "readings", scanned >= MAX_SCANNED, [tuple(row) for row in rows])


def _statement(sql: str) -> Any:
    doubles = (name for name in ("since", "until", "step") if f":{name}" in sql)
    return text(sql.replace("::", r"\:\:")).bindparams(*(bindparam(name, type_=Double) for name in doubles))


def _series(step: float, source: str, truncated: bool, rows: list[tuple[Any, ...]]) -> Series:
    columns: list[list[Any]] = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(6)]
    ts, low, high, mean, last, count = columns
    return Series(step, source, truncated, ts, low, high, mean, last, [int(number) for number in count])
