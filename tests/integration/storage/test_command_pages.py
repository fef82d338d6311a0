"""Pages of commands, on both databases: each command once, whatever is asked for."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.commands import CommandStatus
from bridge.storage import keyset, rollouts
from bridge.storage.commands import Wanted, list_commands
from bridge.storage.database import Database
from bridge.storage.tables import commands
from tests.integration.storage.plans import plans

SENT = [
    {
        "command_id": f"c-{number * 7 % 60:02}",  # in no order
        "device_id": f"d-{number % 2}",
        "key": f"k-{number}",
        "name": "defrost",
        "args": "{}",
        "status": "failed" if number % 3 == 0 else "succeeded",
        "created_at": float(number // 7),  # many at the same time, as those of a rollout
        "expires_at": 100.0,
        "updated_at": 1.0,
        "rollout_id": None if number % 5 == 0 else f"r-{number % 5}",
    }
    for number in range(60)
]
QUESTIONS = [
    Wanted(*values)
    for values in itertools.product((None, "d-1"), (None, CommandStatus.FAILED, CommandStatus.QUEUED), (None, "r-2"))
]


async def fill(connection: AsyncConnection) -> None:
    await connection.execute(insert(commands), SENT)


def expected(wanted: Wanted) -> list[object]:
    """What Python would find."""
    rows = [
        row
        for row in SENT
        if wanted.device_id in (None, row["device_id"])
        and wanted.status in (None, row["status"])
        and wanted.rollout_id in (None, row["rollout_id"])
    ]
    rows.sort(key=lambda row: (row["created_at"], row["command_id"]), reverse=True)
    return [row["command_id"] for row in rows]


async def test_every_page_of_every_question(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    await database.write(fill)
    monkeypatch.setattr(keyset, "SCANNED", 8)
    for wanted in QUESTIONS:
        found: list[object] = []
        before = None
        for _ in range(len(SENT)):
            page, before = await database.read(partial(list_commands, wanted=wanted, limit=5, before=before))
            assert len(page) <= 5
            found += [command.command_id for command in page]
            if before is None:
                break
        assert found == expected(wanted), wanted
        assert before is None


async def test_no_question_is_answered_by_sorting_or_by_a_table(database: Database) -> None:
    """Every statement goes along an index in the order of the page, and only on from where the page begins."""
    if database.dialect != "sqlite":
        pytest.skip("the goal is held on SQLite, whose plans do not depend on how many rows there are")
    await database.write(fill)
    asked = 0
    for wanted, before in itertools.product(QUESTIONS, (None, (4.0, "c-07"))):
        for plan in await plans(database, partial(list_commands, wanted=wanted, limit=5, before=before)):
            asked += 1
            (step,) = plan
            assert "INDEX" in step, (wanted, plan)
            # All commands from the newest on are the one list that is read from an index's end.
            assert step.startswith("SEARCH") or (wanted == Wanted() and before is None), (wanted, plan)
            # Of each index all that the question gives is used.
            for column, value in zip(("device_id", "status", "rollout_id"), wanted, strict=True):
                if value is not None and (column == "device_id" or wanted.device_id is None):
                    assert f"{column}=?" in step, (wanted, plan)
            assert (before is None) or "(created_at,command_id)<" in step, (wanted, plan)
    assert asked > 20


async def test_what_a_rollout_asks_reads_its_own_commands_only(database: Database) -> None:
    if database.dialect != "sqlite":
        pytest.skip("as above")
    for ask in (
        partial(rollouts.count_by_status, rollout_id="r-2"),
        partial(rollouts.count_failures, rollout_id="r-2"),
        partial(rollouts.unfinished_commands, rollout_id="r-2"),
        rollouts.cancelled_commands,
    ):
        for plan in await plans(database, ask):
            assert [step for step in plan if "commands" in step and "rollout_id=?" not in step] == [], plan
            assert not any(step.startswith("SCAN commands") for step in plan), plan
