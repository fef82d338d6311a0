"""Dead letters handed in again: nothing lost, nothing twice."""

from __future__ import annotations

import time
from functools import partial

import pytest
from sqlalchemy import text

from bridge.agents.replay import Replay
from bridge.errors import RefusedError
from bridge.receipts import Outcome
from bridge.storage import deadletters
from bridge.storage.deadletters import DeadLetter
from tests.integration.agents.house import House, house


async def keep(built: House, *letters: tuple[str, bytes], at: float | None = None) -> list[DeadLetter]:
    """Store letters (topic, payload) and read them back, the oldest first."""
    for topic, payload in letters:
        device_id = topic.split("/")[1]
        letter = DeadLetter(at or time.time(), topic, device_id, "not_json", "as an older version said", payload)
        built.writer.add_dead_letter(letter, None)
    await built.writer.barrier()
    return (await left(built))[::-1]


async def left(built: House) -> list[DeadLetter]:
    return await built.database.read(partial(deadletters.list_dead_letters, limit=100))


async def stored(built: House) -> list[tuple[object, ...]]:
    async def rows(connection: object) -> list[tuple[object, ...]]:
        result = await connection.execute(  # type: ignore[attr-defined]  # a connection
            text("SELECT device_id, stream, ts, payload FROM telemetry ORDER BY id")
        )
        return [tuple(row) for row in result]

    return await built.database.read(rows)


async def test_a_letter_that_fits_now_is_stored_once_and_gone(url: str) -> None:
    async with house(url) as built:
        at = time.time() - 3600
        batch = b'[{"t": 1}, {"t": 2, "id": "own"}]'
        letters = await keep(built, ("devices/d1/telemetry", b'{"t": 5}'), ("devices/d1/telemetry/s", batch), at=at)
        replay = Replay(built.services, built.router, built.ledger)
        assert await replay.many(letters) == [Outcome.COMMITTED] * 2
        assert await left(built) == []
        rows = [
            ("d1", "default", at, '{"t": 5}'),
            ("d1", "s", at, '{"t": 1}'),
            ("d1", "s", at, '{"t": 2, "id": "own"}'),
        ]
        assert await stored(built) == rows
        # As after a crash between the commit and the removal of the letters.
        assert await replay.many(letters) == [Outcome.DEDUPLICATED] * 2
        assert await stored(built) == rows
        device = built.router.find("d1")
        assert device is not None
        assert device.liveness.presence.status.value == "unknown"  # a replay is no sign of life


async def test_what_is_refused_again_is_one_letter_with_todays_reason(url: str) -> None:
    async with house(url) as built:
        letters = await keep(built, ("devices/d1/telemetry", b"not JSON at all"))
        assert await Replay(built.services, built.router, built.ledger).many(letters) == [Outcome.DEAD_LETTERED]
        (letter,) = await left(built)
        assert letter.id != letters[0].id
        assert letter.payload == b"not JSON at all"


@pytest.mark.parametrize(
    ("topic", "reason"), [("house/d1/light", "no_agent"), ("devices/bad id/telemetry", "bad_device_id")]
)
async def test_what_leads_nowhere_stays(url: str, topic: str, reason: str) -> None:
    async with house(url) as built:
        letters = await keep(built, (topic, b"{}"), ("devices/d1/telemetry", b"{}"))
        answers = await Replay(built.services, built.router, built.ledger).many(letters)
        assert isinstance(answers[0], RefusedError)
        assert answers[0].reason == reason
        assert answers[1] is Outcome.COMMITTED
        assert [letter.topic for letter in await left(built)] == [topic]


async def test_a_letter_of_which_only_the_beginning_was_kept_stays(url: str) -> None:
    async with house(url) as built:
        (letter,) = await keep(built, ("devices/d1/telemetry", b'{"t": "' + b"x" * deadletters.MAX_PAYLOAD + b'"}'))
        with pytest.raises(RefusedError, match="were kept"):
            await Replay(built.services, built.router, built.ledger).one(letter)
        assert len(await left(built)) == 1


async def test_a_command_that_is_replayed_twice_is_one_command(url: str) -> None:
    async with house(url) as built:
        letters = await keep(built, ("devices/d1/command", b'{"name": "reboot"}'))
        replay = Replay(built.services, built.router, built.ledger)
        await replay.many(letters)
        await replay.many(letters)
        device = built.router.find("d1")
        assert device is not None
        assert len(device.book.open) == 1
