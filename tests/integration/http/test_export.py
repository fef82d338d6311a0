"""Readings as files."""

from __future__ import annotations

import csv
import io
import json
import sys
import tracemalloc
from typing import Any

import pyarrow.parquet as pq
import pytest

from bridge.http import export
from tests.integration.http.house import House
from tests.integration.http.test_telemetry import START, fill

EXPORT = "/api/v1/devices/fridge-7/telemetry/export"


async def exported(house: House, **query: Any) -> bytes:
    answer = await house.client.get(EXPORT, params=query)
    assert answer.status_code == 200, answer.text
    return answer.content


async def test_every_format_holds_every_reading_once_in_order(
    open_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "PAGE", 40)  # several pages, and readings of one time on two of them
    await fill(open_house, 100)
    for number in range(50):
        await open_house.receive("devices/fridge-7/telemetry", b'{"ts": %d, "t": %d}' % (START + 100, 100 + number))
    expected = list(range(150))

    rows = list(csv.DictReader(io.StringIO((await exported(open_house)).decode())))
    assert [int(row["t"]) for row in rows] == expected
    assert rows[0]["ts"] == "2025-11-24T16:00:00+00:00"
    lines = [json.loads(line) for line in (await exported(open_house, format="ndjson")).splitlines()]
    assert [line["values"]["t"] for line in lines] == expected
    table = pq.read_table(io.BytesIO(await exported(open_house, format="parquet"))).to_pylist()
    assert [json.loads(row["values"])["t"] for row in table] == expected
    assert table[0]["ts"].timestamp() == START

    some = await exported(open_house, format="ndjson", since=START + 10, until=START + 12)
    assert [json.loads(line)["values"]["t"] for line in some.splitlines()] == [10, 11]


@pytest.mark.parametrize("form", ["csv", "ndjson", "parquet"])
async def test_a_file_of_any_length_takes_the_memory_of_a_page(
    open_house: House, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made page by page while it is sent, the whole of it is never there."""
    await fill(open_house, 20_000)
    asked = 0
    read = open_house.bridge.database.read

    async def counted(work: Any) -> Any:
        nonlocal asked
        asked += 1
        return await read(work)

    monkeypatch.setattr(open_house.bridge.database, "read", counted)
    size = 0
    tracemalloc.start()
    try:
        async with open_house.client.stream("GET", EXPORT, params={"format": form}) as answer:
            assert answer.status_code == 200
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            async for piece in answer.aiter_raw():
                size += len(piece)
            _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert asked >= 20_000 / export.PAGE, "page after page"
    assert peak - before < 4_000_000, f"{size:,} bytes of file"


async def test_an_empty_export_is_a_file(open_house: House) -> None:
    assert await exported(open_house, format="ndjson") == b""
    assert (await exported(open_house)).decode() == "ts,received_at,message_id,other\r\n"
    assert pq.read_table(io.BytesIO(await exported(open_house, format="parquet"))).num_rows == 0


async def test_what_no_column_holds_is_not_lost_and_no_formula_gets_out(
    open_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "PAGE", 1)
    for payload in ('{"t": -1, "n": "=1+1", "id": "+x"}', '{"t": 2, "late": {"a": 1}}', '{"a": 1e999}'):
        await open_house.receive("devices/fridge-7/telemetry", payload.encode())
    rows = list(csv.reader(io.StringIO((await exported(open_house)).decode())))
    assert rows[0] == ["ts", "received_at", "message_id", "t", "n", "other"]
    assert rows[1][2:] == ["'+x", "-1", "'=1+1", ""]
    assert rows[2][2:] == ["", "2", "", '{"late":{"a":1}}']
    chosen = list(csv.reader(io.StringIO((await exported(open_house, field=["late", "t"])).decode())))
    assert [row[3:] for row in chosen[:3]] == [["late", "t"], ["", "-1"], ['{"a":1}', "2"]]


async def test_without_pyarrow_the_problem_says_what_to_install(
    open_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    answer = await open_house.client.get(EXPORT, params={"format": "parquet"})
    assert answer.status_code == 422
    assert "mqtt-agent-bridge[parquet]" in answer.json()["detail"]
