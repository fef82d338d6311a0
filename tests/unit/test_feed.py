"""What listeners are shown, what they miss, and that they are told so."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from bridge.agents import feed as module
from bridge.agents.feed import Feed, Listener
from bridge.errors import StorageUnavailableError
from bridge.readings import Reading


class Writer:
    """Commits when it is told to."""

    def __init__(self) -> None:
        self.barriers: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()

    def barrier(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.barriers.put_nowait(future)
        return future


def made(writer: Writer | None = None) -> Feed:
    writing: Any = writer or Writer()
    return Feed(writing, lambda: 1.0)


def taken(listener: Listener) -> list[tuple[str, Any]]:
    """The events that wait for a listener: kind and data."""
    events = []
    for frame in listener.take().decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in frame.split("\n"))
        events.append((fields["event"], json.loads(fields["data"])))
    return events


async def committed(writer: Writer) -> None:
    """Let what was handed over become committed."""
    (await writer.barriers.get()).set_result(None)
    await asyncio.sleep(0)


async def test_a_reading_is_shown_once_it_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHOWN_EVERY", 0.0)
    writer = Writer()
    feed = made(writer)
    with feed.listen() as listener:
        assert feed.listening
        feed.readings("fridge-7", "default", 2.0, [Reading(1.0, None, '{"t":\n\r4}')])
        feed.readings("fridge-7", "event/door", 2.0, [Reading(1.0, None, '"open"')])
        barrier = await writer.barriers.get()
        assert taken(listener) == []
        barrier.set_result(None)
        await asyncio.sleep(0)
        both = {"device_id": "fridge-7", "ts": 1.0, "received_at": 2.0}
        assert taken(listener) == [
            ("telemetry", both | {"stream": "default", "values": {"t": 4}}),
            ("event", both | {"stream": "door", "values": "open"}),
        ]


async def test_nothing_that_was_not_committed_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHOWN_EVERY", 0.0)
    writer = Writer()
    feed = made(writer)
    with feed.listen() as listener:
        feed.readings("fridge-7", "default", 2.0, [Reading(1.0, None, "{}")])
        (await writer.barriers.get()).set_exception(StorageUnavailableError("stopped"))
        await asyncio.sleep(0)
        assert taken(listener) == []


async def test_a_listener_gets_what_it_asked_for() -> None:
    feed = made()
    with feed.listen(["presence"], {"a"}) as some, feed.listen() as every:
        feed.published("a", "presence", {"status": "online"})
        feed.published("b", "presence", {"status": "online"})
        feed.published("a", "command/status", {"id": "1"})
        feed.published("a", "state", {"desired": {}})
        feed.published("a", "ping", {"id": "1"})
        assert [kind for kind, _ in taken(every)] == ["presence", "presence", "command", "twin"]
        assert taken(some) == [("presence", {"device_id": "a", "status": "online"})]
        some.watch({"b"})
        feed.published("b", "presence", {"status": "offline"})
        assert taken(some) == [("presence", {"device_id": "b", "status": "offline"})]


async def test_who_reads_too_slowly_loses_the_oldest_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED", 2)
    feed = made()
    with feed.listen() as listener:
        for number in range(5):
            feed.published("a", "presence", {"number": number})
        assert taken(listener) == [
            ("gap", {"missed": 3}),
            ("presence", {"device_id": "a", "number": 3}),
            ("presence", {"device_id": "a", "number": 4}),
        ]
        assert taken(listener) == []


def last_id(listener: Listener) -> int:
    return int(listener.take().rpartition(b"id: ")[2].split(b"\n")[0])


async def test_who_comes_back_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 2)
    feed = made()
    with feed.listen() as listener:
        feed.published("a", "presence", {"number": 0})
        seen = last_id(listener)
    feed.published("a", "presence", {"number": 1})
    feed.published("a", "presence", {"number": 2})
    with feed.listen(after=seen) as listener:
        assert [body["number"] for _, body in taken(listener)] == [1, 2]
    feed.published("a", "presence", {"number": 3})
    with feed.listen(after=seen) as listener:
        assert taken(listener)[0] == ("gap", {"missed": 1})
    with feed.listen(after=5) as listener:
        assert taken(listener)[0] == ("gap", {"missed": None}), "that was another run"
    with feed.listen() as listener:
        assert taken(listener) == [], "who has never been here has missed nothing"


async def test_what_happened_while_nobody_listened_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER", 0.0)
    feed = made()
    assert not feed.listening
    with feed.listen() as listener:
        feed.published("a", "presence", {})
        seen = last_id(listener)
    await asyncio.sleep(0.01)
    assert not feed.listening
    with feed.listen(after=seen) as listener:
        assert taken(listener) == [("gap", {"missed": None})]


async def test_when_the_database_stays_away_the_oldest_go_and_everybody_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SHOWN_EVERY", 0.0)
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    writer = Writer()
    feed = made(writer)
    with feed.listen() as listener:
        for number in range(5):
            feed.readings("a", "default", 2.0, [Reading(float(number), None, "{}")])
        await committed(writer)
        events = taken(listener)
        assert events[0] == ("gap", {"missed": 3})
        assert [body["ts"] for _, body in events[1:]] == [3.0, 4.0]


async def test_a_large_payload_is_not_shown_but_its_size_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHOWN_EVERY", 0.0)
    writer = Writer()
    feed = made(writer)
    with feed.listen() as listener:
        feed.readings("a", "default", 2.0, [Reading(1.0, None, '"' + "x" * 5000 + '"')])
        await committed(writer)
        ((_, body),) = taken(listener)
        assert (body["values"], body["size"]) == (None, 5002)


async def test_a_closed_feed_sends_its_listeners_home() -> None:
    feed = made()
    with feed.listen() as listener:
        waiting = asyncio.create_task(listener.wait(10.0))
        await asyncio.sleep(0)
        feed.close()
        assert await waiting
        assert listener.closed
    with feed.listen() as late:
        assert late.closed
