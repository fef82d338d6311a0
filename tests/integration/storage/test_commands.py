"""Stored commands: one life each, whoever asks for what."""

from __future__ import annotations

from functools import partial

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.commands import PREDECESSORS, Command, CommandResponse, CommandStatus, new_command
from bridge.commands import CommandRequest as Request
from bridge.storage import commands
from bridge.storage.database import Database
from bridge.storage.writer import Writer

S = CommandStatus


def command(key: str | None = None, now: float = 100.0, device_id: str = "d1") -> Command:
    request = Request("reboot", {"delay": 1.5, "why": "ünï \0"}, key)
    return new_command(device_id, request, now, ttl=60, max_ttl=3600, attempts=1)


async def advance(writer: Writer, command_id: str, status: S, at: float, **values: object) -> bool:
    def change(connection: AsyncConnection) -> object:
        return commands.advance_command(
            connection,
            command_id,
            expected=PREDECESSORS[status],
            status=status,
            at=at,
            cause="test",
            **values,  # type: ignore[arg-type]  # result and error
        )

    return bool(await writer.submit(change))  # type: ignore[arg-type]  # a coroutine, by another name


async def test_a_command_comes_back_as_it_was_stored(writer: Writer, database: Database) -> None:
    wanted = command("k1")
    stored, created = await writer.submit(partial(commands.insert_command, command=wanted, cause="api"))
    assert created
    assert stored is wanted
    assert await database.read(partial(commands.get_command, command_id=wanted.command_id)) == wanted
    assert await database.read(partial(commands.get_command, command_id="none")) is None


async def test_one_idempotency_key_is_one_command_of_a_device(writer: Writer) -> None:
    first, second, elsewhere = command("k1"), command("k1"), command("k1", device_id="d2")
    inserts = [writer.submit(partial(commands.insert_command, command=c, cause="api")) for c in (first, second)]
    assert [created for _, created in [await insert for insert in inserts]] == [True, False]
    assert (await inserts[1])[0].command_id == first.command_id
    assert (await writer.submit(partial(commands.insert_command, command=elsewhere, cause="api")))[1]
    # The same command again, as when an answer was lost: still new to its sender.
    assert (await writer.submit(partial(commands.insert_command, command=first, cause="api")))[1]


async def test_a_status_changes_only_from_an_expected_one(writer: Writer, database: Database) -> None:
    c = command()
    await writer.submit(partial(commands.insert_command, command=c, cause="api"))
    assert await advance(writer, c.command_id, S.SENT, 101.0)
    assert not await advance(writer, c.command_id, S.SENT, 102.0)
    assert await advance(writer, c.command_id, S.SUCCEEDED, 103.0, result={"ok": [1, None]})
    assert not await advance(writer, c.command_id, S.EXPIRED, 104.0)
    assert not await advance(writer, "none", S.SENT, 104.0)
    stored = await database.read(partial(commands.get_command, command_id=c.command_id))
    assert stored is not None
    assert (stored.status, stored.updated_at, stored.attempts) == (S.SUCCEEDED, 103.0, 1)
    assert stored.result == {"ok": [1, None]}
    events = await database.read(partial(commands.command_events, command_id=c.command_id))
    assert [(e.seq, e.status, e.at, e.cause) for e in events] == [
        (1, "queued", 100.0, "api"), (2, "sent", 101.0, "test"), (3, "succeeded", 103.0, "test"),
    ]  # fmt: skip
    later = await database.read(partial(commands.command_events, command_id=c.command_id, after_seq=2))
    assert later == events[2:]
    for after_seq, rest in ((0, events), (2, events[2:]), (3, [])):
        both = await database.read(partial(commands.with_events, command_id=c.command_id, after_seq=after_seq))
        assert both == (stored, rest)
    assert await database.read(partial(commands.with_events, command_id="none", after_seq=0)) is None


async def test_of_two_that_race_one_wins(writer: Writer) -> None:
    c = command()
    await writer.submit(partial(commands.insert_command, command=c, cause="api"))
    won = [await advance(writer, c.command_id, status, 101.0) for status in (S.EXPIRED, S.CANCELLED)]
    assert won == [True, False]


async def test_an_error_is_kept_whatever_it_holds(writer: Writer, database: Database) -> None:
    c = command()
    await writer.submit(partial(commands.insert_command, command=c, cause="api"))
    await advance(writer, c.command_id, S.SENT, 101.0)
    assert await advance(writer, c.command_id, S.FAILED, 102.0, error="broken\0pipe")
    stored = await database.read(partial(commands.get_command, command_id=c.command_id))
    assert stored is not None
    assert stored.error == "broken\N{REPLACEMENT CHARACTER}pipe"


async def test_unfinished_commands_oldest_first(writer: Writer, database: Database) -> None:
    made = [command(now=100.0 + number) for number in (3, 1, 2, 0)]
    for c in made:
        await writer.submit(partial(commands.insert_command, command=c, cause="api"))
    await advance(writer, made[1].command_id, S.CANCELLED, 200.0)
    await advance(writer, made[2].command_id, S.SENT, 200.0)
    found = await database.read(commands.open_commands)
    assert [c.created_at for c in found] == [100.0, 102.0, 103.0]


@pytest.mark.parametrize("response_id", ["none", "with\0nul"])
async def test_a_late_response_to_no_command(writer: Writer, response_id: str) -> None:
    response = CommandResponse(response_id, S.SUCCEEDED)
    record = partial(commands.record_late_response, device_id="d1", response=response, at=1.0)
    assert await writer.submit(record) is False


async def test_late_responses_are_history_up_to_a_limit(writer: Writer, database: Database) -> None:
    c = command()
    await writer.submit(partial(commands.insert_command, command=c, cause="api"))
    response = CommandResponse(c.command_id, S.SUCCEEDED, result=7)
    for device_id, known in (("d1", True), ("d2", False)):
        record = partial(commands.record_late_response, device_id=device_id, response=response, at=101.0)
        assert await writer.submit(record) is known
    for number in range(commands.MAX_EVENTS + 10):
        response = CommandResponse(c.command_id, S.FAILED, error=f"again {number}")
        writer.submit(partial(commands.record_late_response, device_id="d1", response=response, at=102.0))
    assert await advance(writer, c.command_id, S.CANCELLED, 103.0)
    events = await database.read(partial(commands.command_events, command_id=c.command_id))
    assert (events[1].cause, events[1].detail) == ("late_response", "7")
    assert len(events) == commands.MAX_EVENTS + 1
    assert (events[-1].status, events[-1].seq) == ("cancelled", commands.MAX_EVENTS + 1)


async def test_a_command_is_stored_with_its_first_attempt(writer: Writer, database: Database) -> None:
    wanted = command("k1")
    first = commands.FirstAttempt(wanted.created_at + 1.0, "device_listening")
    assert (await writer.submit(partial(commands.insert_command, command=wanted, cause="api", first=first)))[1]
    found = await database.read(partial(commands.get_command, command_id=wanted.command_id))
    assert found is not None
    assert (found.status, found.attempts, found.updated_at) == (S.SENT, 1, first.at)
    history = await database.read(partial(commands.command_events, command_id=wanted.command_id))
    assert history == [
        (1, "queued", wanted.created_at, "api", None),
        (2, "sent", first.at, "device_listening", None),
    ]
    # The same key again: nothing of it is stored.
    again = command("k1")
    assert not (await writer.submit(partial(commands.insert_command, command=again, cause="api", first=first)))[1]
    assert len(await database.read(partial(commands.command_events, command_id=again.command_id))) == 0
