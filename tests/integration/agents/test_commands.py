"""A command's attempts, its cancelling, its idempotency key, and who carries it out."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from bridge.agents.book import CommandBook
from bridge.agents.device import Device
from bridge.agents.services import Rules
from bridge.commands import Command, CommandRequest, CommandStatus
from bridge.errors import RefusedError, StorageError, StorageUnavailableError
from bridge.receipts import Outcome
from bridge.storage import commands as stored
from bridge.storage import deadletters
from tests.integration.agents.house import House, Line, Sent, house
from tests.waiting import eventually

REQUEST = "devices/d1/command/request"
STATUS = "devices/d1/command/status"
CANCEL = "devices/d1/command/cancel"


def requests(built: House) -> list[Sent]:
    return [sent for sent in built.sent if sent.topic == REQUEST]


async def steps(built: House, command_id: str) -> list[tuple[str, str]]:
    events = await built.database.read(lambda connection: stored.command_events(connection, command_id))
    return [(event.status, event.cause) for event in events]


def acknowledge(sent: Sent) -> None:
    assert sent.on_ack is not None
    sent.on_ack()


def respond(built: House, command_id: str, status: str) -> Any:
    return built.receive("devices/d1/command/response", f'{{"id":"{command_id}","status":"{status}"}}'.encode())


async def test_a_request_that_is_not_acknowledged_is_sent_again_with_the_same_id_up_to_its_attempts(url: str) -> None:
    async with house(url) as built:
        built.router.attached("d1", Line(), listening=True)
        command, _ = await built.router.send("d1", CommandRequest("open", ttl=2.5, attempts=3, retry_after=0.1), "api")
        await eventually(lambda: built.bodies(STATUS) and built.bodies(STATUS)[-1]["status"] == "expired")
        assert [sent.body["id"] for sent in requests(built)] == [command.command_id] * 3
        assert await steps(built, command.command_id) == [
            ("queued", "api"), ("sent", "device_listening"), ("sent", "retry"), ("sent", "retry"),
            ("expired", "deadline"),
        ]  # fmt: skip
        assert [body["status"] for body in built.bodies(STATUS)] == ["queued", "sent", "sent", "sent", "expired"]


async def test_what_the_device_has_acknowledged_is_not_sent_again_not_even_on_its_next_connection(url: str) -> None:
    async with house(url, Rules(command_attempts=5, command_retry_after=0.05)) as built:
        line = Line()
        built.router.attached("d1", line, listening=True)
        command, _ = await built.router.send("d1", CommandRequest("open", ttl=1.5), "api")
        await eventually(lambda: requests(built))
        acknowledge(requests(built)[0])
        await eventually(lambda: built.bodies(STATUS)[-1]["status"] == "delivered")
        sent = len(requests(built))
        built.router.detached("d1", line, "error")
        built.router.attached("d1", Line(), listening=True)
        await eventually(lambda: built.bodies(STATUS)[-1]["status"] == "expired")
        assert len(requests(built)) == sent
        # An acknowledgement that comes twice, or late, says nothing new.
        acknowledge(requests(built)[0])
        respond(built, command.command_id, "succeeded")
        await eventually(lambda: built.ledger.in_flight == 0)
        assert (await steps(built, command.command_id))[-2:] == [
            ("expired", "deadline"),
            ("succeeded", "late_response"),
        ]


async def test_a_new_connection_is_sent_what_was_not_acknowledged_on_the_last_one(url: str) -> None:
    async with house(url) as built:
        line = Line()
        built.router.attached("d1", line, listening=True)
        command, _ = await built.router.send("d1", CommandRequest("open", attempts=2), "api")
        await eventually(lambda: len(requests(built)) == 1)
        for connection in range(3):
            built.router.detached("d1", line, "error")
            line = Line(f"c{connection}")
            built.router.attached("d1", line, listening=True)
        await eventually(lambda: len(requests(built)) == 2)  # connections are told a little later than commands
        probe, _ = await built.router.send("d1", CommandRequest("probe"), "api")
        await eventually(lambda: requests(built)[-1].body["id"] == probe.command_id)
        assert [sent.body["id"] for sent in requests(built)[:-1]] == [command.command_id] * 2
        assert (await steps(built, command.command_id))[1:] == [("sent", "device_listening"), ("sent", "reconnect")]


async def test_a_command_is_sent_again_after_a_restart_with_the_attempts_that_are_left(url: str) -> None:
    async with house(url) as built:
        built.router.attached("d1", Line(), listening=True)
        command, _ = await built.router.send("d1", CommandRequest("open", attempts=2), "api")
        once, _ = await built.router.send("d1", CommandRequest("once", attempts=1), "api")
        await eventually(lambda: len(requests(built)) == 2)
    async with house(url) as built:
        built.router.attached("d1", Line(), listening=True)
        await eventually(lambda: requests(built))
        respond(built, command.command_id, "succeeded")
        respond(built, once.command_id, "succeeded")
        await eventually(lambda: [b["status"] for b in built.bodies(STATUS)].count("succeeded") == 2)
        assert [sent.body["id"] for sent in requests(built)] == [command.command_id]


async def test_the_same_key_for_something_else_is_refused_and_the_stored_command_stands(url: str) -> None:
    async with house(url) as built:
        first, _ = await built.router.send("d1", CommandRequest("open", {"door": 1}, id="k"), "api")
        for other in (CommandRequest("close", {"door": 1}, id="k"), CommandRequest("open", {"door": 2}, id="k")):
            with pytest.raises(RefusedError, match=first.command_id) as refused:
                await built.router.send("d1", other, "api")
            assert refused.value.reason == "key_conflict"
        again = built.receive("devices/d1/command", b'{"name":"open","args":{"door":1},"id":"k"}')
        wrong = built.receive("devices/d1/command", b'{"name":"close","id":"k"}')
        await eventually(lambda: again.outcome and wrong.outcome)
        await eventually(lambda: built.services.census.refused["key_conflict"])
        await built.writer.barrier()
        letters = await built.database.read(lambda connection: deadletters.list_dead_letters(connection, 10))
        assert [(letter.reason, letter.payload) for letter in letters] == [
            ("key_conflict", b'{"name":"close","id":"k"}')
        ]
        assert await steps(built, first.command_id) == [("queued", "api")]


@pytest.mark.parametrize("delivered", [False, True])
async def test_a_cancelled_command_is_over_and_a_device_that_has_it_is_told(url: str, delivered: bool) -> None:
    async with house(url) as built:
        if delivered:
            built.router.attached("d1", Line(), listening=True)
        command, _ = await built.router.send("d1", CommandRequest("open"), "api")
        if delivered:
            await eventually(lambda: requests(built))
        assert await built.router.cancel("d1", command.command_id, "api")
        assert not await built.router.cancel("d1", command.command_id, "api"), "it is over"
        assert not await built.router.cancel("d1", "nonsense", "api")
        assert built.bodies(CANCEL) == ([{"id": command.command_id}] if delivered else [])
        answer = respond(built, command.command_id, "succeeded")
        await eventually(lambda: answer.outcome)
        assert answer.outcome is Outcome.COMMITTED
        assert (await steps(built, command.command_id))[-2:] == [("cancelled", "api"), ("succeeded", "late_response")]
        if not delivered:
            built.router.attached("d1", Line(), listening=True)
            await built.router.send("d1", CommandRequest("probe"), "api")
            await eventually(lambda: requests(built))
            assert [sent.body["name"] for sent in requests(built)] == ["probe"]


class Butler:
    """Carries out `defrost` in the device's place."""

    def __init__(self, book: CommandBook) -> None:
        self.book = book
        self.executed: list[str] = []

    def takes(self, name: str) -> bool:
        return name == "defrost"

    def execute(self, command: Command) -> None:
        self.executed.append(command.command_id)
        self.book.report(command.command_id, CommandStatus.SUCCEEDED, {"ok": True})
        self.book.report(command.command_id, CommandStatus.FAILED, error="too late to say so")


async def test_an_agent_carries_out_its_own_commands_without_the_device(url: str) -> None:
    async with house(url) as built:
        butler: asyncio.Future[Butler] = asyncio.get_running_loop().create_future()

        def engage(device: Device) -> None:
            device.book.executor = made = Butler(device.book)
            butler.set_result(made)

        built.router.cell("d1").tell(engage)
        command, _ = await built.router.send("d1", CommandRequest("defrost"), "api")
        await built.router.send("d1", CommandRequest("open"), "api")
        await eventually(lambda: any(body["status"] == "succeeded" for body in built.bodies(STATUS)))
        assert (await butler).executed == [command.command_id]
        assert await steps(built, command.command_id) == [("queued", "api"), ("sent", "agent"), ("succeeded", "agent")]
        built.router.attached("d1", Line(), listening=True)
        await eventually(lambda: requests(built))
        assert [sent.body["name"] for sent in requests(built)] == ["open"]


class Answers:
    """The database's: while they are `lost` what is committed stays committed, and nobody hears of it."""

    def __init__(self, built: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lost = True
        transact, self.first = built.database.transact, True

        async def answered(change: Any) -> Any:
            if self.lost and not self.first:
                raise StorageUnavailableError("the database is away")
            result = await transact(change)
            if self.lost:
                self.first = False
                raise StorageUnavailableError("the answer is lost")
            return result

        self.patience = partial(monkeypatch.setattr, built.writer, "patience")
        monkeypatch.setattr(built.database, "transact", answered)
        self.patience(0.1)

    def come_back(self) -> None:
        """What is asked from now on is answered."""
        self.lost = False
        self.patience(30.0)


@pytest.mark.parametrize("attempts", [1, 3])
async def test_a_command_that_was_stored_though_nobody_could_say_so_goes_its_way(
    url: str, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(url) as built:
        built.router.attached("d1", Line(), listening=True)
        await eventually(lambda: (device := built.router.find("d1")) is not None and device.listening)
        await built.writer.barrier()
        answers = Answers(built, monkeypatch)
        request = CommandRequest("open", id="k", ttl=50, attempts=attempts)
        with pytest.raises(StorageUnavailableError):
            await built.router.send("d1", request, "api")
        with pytest.raises(StorageUnavailableError):
            await built.router.send("d1", CommandRequest("close", id="never stored"), "api")
        assert not requests(built)
        answers.come_back()
        await eventually(lambda: requests(built))
        command, created = await built.router.send("d1", request, "api")
        assert (requests(built)[0].body["id"], created) == (command.command_id, False)
        respond(built, command.command_id, "succeeded")
        await eventually(lambda: [body["status"] for body in built.bodies(STATUS)] == ["queued", "sent", "succeeded"])
        found, _ = await built.database.read(partial(stored.list_commands, wanted=stored.Wanted("d1"), limit=10))
        assert [known.command_id for known in found] == [command.command_id]
        assert len(requests(built)) == 1


async def test_a_command_that_was_stored_though_nobody_could_say_so_ends_at_its_deadline(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(url) as built:
        answers = Answers(built, monkeypatch)
        with pytest.raises(StorageUnavailableError):
            await built.router.send("d1", CommandRequest("open", ttl=0.2), "api")
        answers.come_back()
        await eventually(lambda: [body["status"] for body in built.bodies(STATUS)] == ["queued", "expired"])


async def test_the_limit_of_unfinished_commands_holds_for_those_that_come_at_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.agents.book.MAX_OPEN", 5)
    async with house(url) as built:
        receipts = [built.receive("devices/d1/command", b'{"name":"open"}') for _ in range(8)]
        await eventually(lambda: all(receipt.outcome for receipt in receipts))
        assert [receipt.outcome for receipt in receipts] == [Outcome.COMMITTED] * 5 + [Outcome.DEAD_LETTERED] * 3
        found, _ = await built.database.read(partial(stored.list_commands, wanted=stored.Wanted("d1"), limit=10))
        assert len(found) == 5
        await built.router.cancel("d1", found[0].command_id, "api")
        last, _ = await built.router.send("d1", CommandRequest("open", id="k"), "api")
        with pytest.raises(RefusedError, match="5 unfinished"):
            await built.router.send("d1", CommandRequest("open", id="other"), "api")
        again, created = await built.router.send("d1", CommandRequest("open", id="k"), "api")
        assert (again.command_id, created) == (last.command_id, False), "the same command takes no room"


class Refusals:
    """Of the database, to store that a command is `status` now, while there are any."""

    def __init__(self, status: CommandStatus, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = True
        advance = stored.advance_command

        async def refused(connection: Any, command_id: str, **change: Any) -> bool:
            if change["status"] is status and self.on:
                raise StorageError("refused")
            return await advance(connection, command_id, **change)

        monkeypatch.setattr(stored, "advance_command", refused)


async def test_an_attempt_that_the_database_refuses_to_store_is_made_on_the_next_connection(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = Refusals(CommandStatus.SENT, monkeypatch)
    async with house(url) as built:
        command, _ = await built.router.send("d1", CommandRequest("open", attempts=1), "api")
        line = Line()
        built.router.attached("d1", line, listening=True)
        await eventually(lambda: built.writer.stats.refused)
        refusals.on = False
        built.router.detached("d1", line, "error")
        built.router.attached("d1", Line("c2"), listening=True)
        await eventually(lambda: requests(built))
        assert [status for status, _ in await steps(built, command.command_id)] == ["queued", "sent"]


async def test_an_end_that_the_database_refuses_to_store_is_stored_later(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.agents.book.AGAIN", 0.1)
    refusals = Refusals(CommandStatus.EXPIRED, monkeypatch)
    async with house(url) as built:
        command, _ = await built.router.send("d1", CommandRequest("open", ttl=0.1), "api")
        await eventually(lambda: built.writer.stats.refused >= 2)
        refusals.on = False
        await eventually(lambda: built.bodies(STATUS)[-1]["status"] == "expired")
        assert [status for status, _ in await steps(built, command.command_id)] == ["queued", "expired"]
