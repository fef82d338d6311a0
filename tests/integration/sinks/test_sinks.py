"""Sinks with real receivers: everything at least once and in order, whatever fails, and nobody else notices."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import subprocess
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from bridge.commands import CommandRequest, CommandStatus, new_command
from bridge.sinks import feeder as feeding
from bridge.sinks.feeder import Feeder, Filter, Pace
from bridge.sinks.files import Lines, Parquet
from bridge.sinks.sink import Sink, SinkUnavailableError
from bridge.sinks.upstream import Broker, Upstream
from bridge.sinks.webhook import Webhook
from bridge.storage import commands as stored_commands
from bridge.storage.committed import Record, Source
from bridge.storage.database import Database
from bridge.storage.writer import Writer
from tests.integration.sinks.receiver import Receiver
from tests.integration.storage.witness import committed
from tests.servers import Mosquitto, program
from tests.waiting import eventually

LONG = 8_000
ROW_BYTES = 500
"""What a record takes in memory, or more."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "IDLE", 0.01)
    monkeypatch.setattr(feeding, "_backoff", lambda state: 0.02)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        yield server


Hook = Callable[..., Webhook]


@pytest_asyncio.fixture
async def hook(receiver: Receiver) -> AsyncIterator[Hook]:
    """Makes webhooks, and closes them."""
    made: list[Webhook] = []

    def make(secret: str | None = None, url: str | None = None) -> Webhook:
        made.append(Webhook(url or receiver.url, secret, 5.0, time.time))
        return made[-1]

    yield make
    for webhook in made:
        await webhook.close()


@contextlib.asynccontextmanager
async def running(feeder: Feeder) -> AsyncIterator[Feeder]:
    """A feeder that runs, and that must not have ended by itself."""
    task = asyncio.create_task(feeder.run())
    try:
        yield feeder
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def add(writer: Writer, numbers: range, device_id: str = "d1", stream: str = "default") -> None:
    for n in numbers:
        writer.add_reading(device_id, stream, 1000.0 + n, time.time(), None, json.dumps({"n": n}), None)
    await committed(writer)


async def test_everything_comes_in_order_and_is_signed(
    database: Database, writer: Writer, receiver: Receiver, hook: Hook
) -> None:
    await add(writer, range(5))
    feeder = Feeder("hook", hook("a secret"), database, Filter(), Pace(batch=7), from_beginning=True)
    async with running(feeder):
        await add(writer, range(5, 30))
        writer.add_presence("d1", 1, "online", "connect", 5.0)
        command = new_command("d1", CommandRequest("reboot"), 1.0, ttl=60, max_ttl=60)
        await writer.submit(partial(stored_commands.insert_command, command=command, cause="api"))
        await eventually(lambda: len(receiver.records) == 32, "all records")
    readings = [record for record in receiver.records if record["kind"] == "telemetry"]
    assert [record["data"]["n"] for record in readings] == list(range(30))
    assert len({record["id"] for record in receiver.records}) == 32
    (presence,) = (record for record in receiver.records if record["kind"] == "presence")
    assert presence["data"] == {"status": "online", "cause": "connect", "epoch": 1, "at": 5.0}
    (step,) = (record for record in receiver.records if record["kind"] == "command")
    assert (step["device_id"], step["data"]["id"], step["data"]["status"]) == ("d1", command.command_id, "queued")
    headers, body = receiver.requests[0]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.new(b"a secret", signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()


async def test_a_new_sink_gets_what_comes_and_a_known_one_goes_on(
    database: Database, writer: Writer, receiver: Receiver, hook: Hook
) -> None:
    await add(writer, range(3))
    first = Feeder("hook", hook(), database, Filter(), Pace())
    await first.advance()
    await add(writer, range(3, 6))
    while await first.advance():
        pass
    assert receiver.values == [3, 4, 5]
    await add(writer, range(6, 9))
    second = Feeder("hook", hook(), database, Filter(), Pace(), from_beginning=True)
    while await second.advance():
        pass
    assert receiver.values == [3, 4, 5, 6, 7, 8]


async def test_a_receiver_that_fails_is_asked_again_and_nothing_is_left_out(
    database: Database, writer: Writer, receiver: Receiver, hook: Hook
) -> None:
    answers = iter([500, 429, 503] * 2)
    receiver.answer = lambda records: next(answers, 200)
    await add(writer, range(20))
    feeder = Feeder("hook", hook(), database, Filter(), Pace(batch=6), from_beginning=True)
    async with running(feeder):
        await eventually(lambda: len(receiver.records) == 20, "all records in spite of failures", 30)
    assert receiver.values == list(range(20))
    assert feeder.retries >= 5
    assert feeder.breaker.opened >= 1


async def test_what_is_refused_is_passed_over_alone(
    database: Database, writer: Writer, receiver: Receiver, hook: Hook
) -> None:
    receiver.answer = lambda records: 422 if any(record["data"]["n"] in (3, 11) for record in records) else 200
    await add(writer, range(20))
    feeder = Feeder("hook", hook(), database, Filter(), Pace(), from_beginning=True)
    while await feeder.advance():
        pass
    assert receiver.values == [n for n in range(20) if n not in (3, 11)]
    assert (feeder.delivered, feeder.refused) == (18, 2)


async def test_only_what_is_wanted(database: Database, writer: Writer, receiver: Receiver, hook: Hook) -> None:
    wanted = Filter(frozenset(["telemetry", "event"]), ("cold-*",), ("default", "event/*"))
    await add(writer, range(2), "cold-1")
    await add(writer, range(2, 4), "warm-1")
    await add(writer, range(4, 6), "cold-1", "other")
    await add(writer, range(6, 8), "cold-2", "event/door")
    writer.add_presence("cold-1", 1, "online", "connect", 5.0)
    await committed(writer)
    feeder = Feeder("hook", hook(), database, wanted, Pace(batch=3), from_beginning=True)
    assert feeder._wanted.sources == (Source.TELEMETRY,)
    while await feeder.advance():
        pass
    assert receiver.values == [0, 1, 6, 7]
    assert [record["kind"] for record in receiver.records] == ["telemetry", "telemetry", "event", "event"]


async def test_a_dead_sink_holds_up_nobody(database: Database, writer: Writer, receiver: Receiver, hook: Hook) -> None:
    dead = Feeder("dead", hook(url="http://127.0.0.1:9/hook"), database, Filter(), Pace())
    live = Feeder("live", hook(), database, Filter(), Pace())
    async with running(dead), running(live):
        await asyncio.sleep(0)
        await eventually(lambda: bool(dead._positions and live._positions), "both to have begun")
        await add(writer, range(50))
        await eventually(lambda: len(receiver.records) == 50, "the live sink's records")
        await eventually(lambda: dead.trouble is not None and dead.lag > 0, "the dead sink's complaint")
    assert dead.delivered == 0


class Clumsy(Sink):
    """A user's own class, with a mistake that shows now and then."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.calls = 0

    async def deliver(self, records: Any) -> None:
        self.calls += 1
        if self.calls % 2:
            raise ZeroDivisionError
        self.taken += [record.key for record in records]


async def test_an_answer_that_drips_is_none() -> None:
    """However long a receiver goes on answering, one byte at a time: the time is that of the whole request."""

    hung_up = asyncio.Event()

    async def drip(_reader: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            answer.write(b"HTTP/1.1 200 OK\r\nx: ")
            while not answer.is_closing():
                answer.write(b"x")
                await answer.drain()
                await asyncio.sleep(0.02)
        answer.close()
        hung_up.set()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    hook = Webhook(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", None, 0.3, time.time)
    record = Record(Source.TELEMETRY, 1, "d1", "default", 1.0, 1.0, "{}")
    with pytest.raises(SinkUnavailableError, match=r"not done within 0\.3 s"):
        await asyncio.wait_for(hook.deliver([record]), 20.0)
    await hook.close()
    await asyncio.wait_for(hung_up.wait(), 20.0)
    server.close()


async def test_what_waits_for_a_sink_waits_in_the_database(database: Database, writer: Writer) -> None:
    """A long outage costs no memory, and neither does its end: one delivery at a time is read."""

    class Away(Sink):
        there = False
        taken = 0

        async def deliver(self, records: Sequence[Record]) -> None:
            if not self.there:
                raise SinkUnavailableError("away")
            self.taken += len(records)

    sink = Away()
    feeder = Feeder("away", sink, database, Filter(), Pace(batch=100), from_beginning=True)
    async with running(feeder):
        for start in range(0, LONG, 2_000):
            await add(writer, range(start, start + 2_000))
        assert feeder.trouble == "away"
        tracemalloc.start()
        try:
            sink.there = True
            await eventually(lambda: sink.taken == LONG, "everything that has waited", 60.0)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < LONG * ROW_BYTES / 4, f"{peak:,} bytes"


async def test_a_sink_says_so_before_it_misses_what_is_deleted(database: Database, writer: Writer, hook: Hook) -> None:
    """When four fifths of the time have passed for which readings are kept; and no more when it has caught up."""
    ahead = 0.0
    sink = Feeder(
        "late", hook(url="http://127.0.0.1:9/hook"), database, Filter(), Pace(), from_beginning=True,
        kept_for={Source.TELEMETRY: 10 * 86_400.0}, clock=lambda: time.time() + ahead,
    )  # fmt: skip
    async with running(sink):
        await add(writer, range(3))
        await eventually(lambda: sink.retries > 0, "the first failure")
        assert sink.endangered is None
        ahead = 8.5 * 86_400
        assert sink.endangered == ("sink late: telemetry of 8.5 days ago waits for it, and is deleted after 10 days")


async def test_a_sink_that_raises_anything_is_called_again(database: Database, writer: Writer) -> None:
    await add(writer, range(9))
    sink = Clumsy()
    feeder = Feeder("own", sink, database, Filter(), Pace(batch=4), from_beginning=True)
    async with running(feeder):
        await eventually(lambda: len(sink.taken) == 9, "the records")
    assert len(set(sink.taken)) == 9


async def test_a_delivery_waits_until_it_is_full_or_old(
    database: Database, writer: Writer, receiver: Receiver, hook: Hook
) -> None:
    now = time.time()
    feeder = Feeder(
        "hook", hook(), database, Filter(), Pace(batch=10, wait=3600.0), from_beginning=True, clock=lambda: now
    )
    await add(writer, range(25))
    for _ in range(4):
        await feeder.advance()
    assert receiver.values == list(range(20))
    now += 3700.0
    await feeder.advance()
    assert receiver.values == list(range(25))


# ---------------------------------------------------------------------- MQTT


@pytest.mark.mosquitto
@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("kind", ["sqlite"])
async def test_upstream_a_broker_that_goes_away_gets_everything_once_it_is_back(
    database: Database, writer: Writer, tmp_path: Path, version: Any
) -> None:
    with Mosquitto() as broker:
        subscriber = await asyncio.create_subprocess_exec(
            program("mosquitto_sub"), "-h", "127.0.0.1", "-p", str(broker.port), "-t", "site/#", "-q", "1", "-v",
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert subscriber.stdout is not None
        sink = Upstream(Broker("127.0.0.1", broker.port, "up", version=version), "site")
        feeder = Feeder("up", sink, database, Filter(), Pace(), from_beginning=True)
        try:
            probe = Upstream(Broker("127.0.0.1", broker.port, "probe", version=version), "site")
            line = b""
            while not line:  # until mosquitto_sub has subscribed
                await probe.deliver([Record(Source.TELEMETRY, 0, "probe", "s", 0, 0, "{}")])
                with contextlib.suppress(TimeoutError):
                    line = await asyncio.wait_for(subscriber.stdout.readline(), 0.5)
            await probe.close()
            async with running(feeder):
                await add(writer, range(30), stream="room")
                found: list[Any] = []
                while len(found) < 30:
                    topic, _, payload = (await asyncio.wait_for(subscriber.stdout.readline(), 10)).partition(b" ")
                    if topic == b"site/d1/telemetry/room":
                        found.append(json.loads(payload))
        finally:
            subscriber.terminate()
            await subscriber.wait()
    assert [record["data"]["n"] for record in found] == list(range(30))
    assert len({record["id"] for record in found}) == 30
    with pytest.raises(SinkUnavailableError, match=str(broker.port)):
        await Upstream(Broker("127.0.0.1", broker.port, "up", version=version), "site").deliver(
            [Record(Source.TELEMETRY, 1, "d", "s", 0, 0, "{}")]
        )


# ---------------------------------------------------------------------- files


def files_in(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(folder.glob(pattern))


def record(number: int, body: str = '{"n": 1}') -> Record:
    return Record(Source.TELEMETRY, number, "d1", "default", 1.5, 2.5, body)


async def test_lines_are_rotated_and_the_oldest_removed(tmp_path: Path) -> None:
    sink = Lines(tmp_path, "out", max_bytes=400, keep=2, clock=time.time)
    for number in range(20):
        await sink.deliver([record(number)])
    await sink.close()
    full = files_in(tmp_path, "out-*.ndjson")
    assert len(full) == 2
    paths = [path for path in [*full, tmp_path / "out.ndjson"] if path.exists()]
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"telemetry-{n}" for n in range(20 - len(lines), 20)]


async def test_a_line_that_a_crash_cut_off_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "out.ndjson").write_bytes(b'{"id": "telemetry-1", "ki')
    sink = Lines(tmp_path, "out", max_bytes=1_000_000, keep=0, clock=time.time)
    await sink.deliver([record(1)])
    await sink.close()
    assert json.loads((tmp_path / "out.ndjson").read_text().splitlines()[1])["id"] == "telemetry-1"


async def test_a_folder_that_cannot_be_written_is_for_later(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for sink in (Lines(tmp_path / "file", "out", 10, 0, time.time), Parquet(tmp_path / "file", "out", 0, time.time)):
        with pytest.raises(SinkUnavailableError):
            await sink.deliver([record(1)])


async def test_parquet_files_are_whole_and_typed(tmp_path: Path) -> None:
    sink = Parquet(tmp_path, "out", keep=2, clock=lambda: 1_700_000_000.0)
    for start in (0, 10, 20):
        await sink.deliver([record(number) for number in range(start, start + 10)])
    files = files_in(tmp_path)
    assert len(files) == 2
    table = pq.read_table(files[-1])
    assert table.column("id").to_pylist() == [f"telemetry-{n}" for n in range(20, 30)]
    assert str(table.schema.field("at").type) == "timestamp[us, tz=UTC]"
    assert table.column("at")[0].as_py().timestamp() == 1.5


async def test_steps_of_commands_come_in_the_order_of_their_commits(database: Database, writer: Writer) -> None:
    command = new_command("d1", CommandRequest("reboot"), 1.0, ttl=60, max_ttl=60)
    await writer.submit(partial(stored_commands.insert_command, command=command, cause="api"))
    for status in (CommandStatus.SENT, CommandStatus.DELIVERED):
        await writer.submit(
            partial(
                stored_commands.advance_command,
                command_id=command.command_id,
                expected=frozenset(CommandStatus),
                status=status,
                at=2.0,
                cause="test",
            )
        )
    sink = Clumsy()
    feeder = Feeder("own", sink, database, Filter(frozenset(["command"])), Pace(), from_beginning=True)
    sink.calls = 1
    await feeder.advance()
    numbers = [int(key.rpartition("-")[2]) for key in sink.taken]
    assert len(numbers) == 3
    assert numbers == sorted(numbers)
