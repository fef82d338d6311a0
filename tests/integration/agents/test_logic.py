"""Device logic on a real database: one commit for what a message brought and what it caused, or none of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from sqlalchemy import select, text

from bridge import Agent, Command, Transition, every, on
from bridge.agents.handlers import Handlers
from bridge.agents.services import Rules
from bridge.commands import CommandRequest, CommandStatus
from bridge.profiles import Profile
from bridge.receipts import Outcome, Receipt
from bridge.storage import tables
from bridge.storage.commands import get_command
from tests.integration.agents.house import House, Line, house
from tests.integration.agents.test_agents import count
from tests.waiting import eventually


class Reading(msgspec.Struct):
    temperature: float = 0.0
    wait: bool = False
    forever: bool = False
    broken: bool = False
    command: bool = False
    huge: bool = False


class Freezer(Agent):
    """Counts what it is called for, and does what the readings ask for."""

    gate: asyncio.Event
    calls = 0

    class State(msgspec.Struct):
        count: int = 0
        told: list[str] = []

    @on.telemetry()
    async def reading(self, m: Reading) -> None:
        Freezer.calls += 1
        self.state.count += 1
        if m.wait:
            await Freezer.gate.wait()
        if m.forever:
            await asyncio.Event().wait()
        if m.command:
            await self.command("compressor", {"on": True})
            await self.publish(self.topic("alarm"), {"count": self.state.count})
        if m.huge:
            self.state.told = ["x" * 300_000]
        if m.broken:
            raise ZeroDivisionError("on purpose")

    @on.presence
    async def presence(self, change: Transition) -> None:
        self.state.told.append(change.status.value)

    @on.response("compressor")
    async def answered(self, command: Command) -> None:
        self.state.told.append(f"{command.status.value} {command.result}")


RULES = Rules(handler_timeout=5.0)


@pytest_asyncio.fixture(autouse=True)
async def gate() -> AsyncIterator[asyncio.Event]:
    """What a reading with `wait` waits for."""
    Freezer.gate = asyncio.Event()
    Freezer.calls = 0
    yield Freezer.gate
    Freezer.gate.set()


async def stored(built: House, device_id: str = "f1", agent: str = "Freezer") -> Any:
    """The state in the database, None if there is none."""

    async def read(connection: Any) -> Any:
        state = tables.agent_states.c.state
        query = select(state).where(tables.agent_states.c.device_id == device_id, tables.agent_states.c.agent == agent)
        found = (await connection.execute(query)).scalar_one_or_none()
        return None if found is None else msgspec.json.decode(found)

    return await built.database.read(read)


def send(built: House, payload: Any, name: str = "telemetry", device: str = "f1", qos: int = 1) -> Receipt:
    return built.receive(f"devices/{device}/{name}", msgspec.json.encode(payload), qos)


async def settled(*receipts: Receipt) -> set[Outcome | None]:
    await eventually(lambda: all(receipt.outcome for receipt in receipts))
    return {receipt.outcome for receipt in receipts}


async def test_state_and_readings_are_committed_together_in_order(url: str) -> None:
    async with house(url, RULES, Freezer) as built:
        receipts = [send(built, {"temperature": n}, device=f"f{n % 3}") for n in range(30)]
        assert await settled(*receipts) == {Outcome.COMMITTED}
        for n in range(3):
            assert await stored(built, f"f{n}") == {"count": 10, "told": []}
        assert await count(built, tables.telemetry) == 30
        device = built.router.find("f1")
        assert device is not None
        assert (device.messages, device.streams["default"].payload) == (10, '{"temperature":28}')


async def test_state_survives_a_restart(url: str) -> None:
    async with house(url, RULES, Freezer) as built:
        await settled(send(built, {}))
    async with house(url, RULES, Freezer) as built:
        await settled(send(built, [{}, {}]))
        assert await stored(built) == {"count": 3, "told": []}


async def test_a_handler_that_raises_leaves_a_dead_letter_and_nothing_else(url: str) -> None:
    rules = Rules(restarts=2)
    async with house(url, rules, Freezer) as built:
        good = send(built, {"command": True})
        bad = [send(built, [{"command": True}, {"broken": True}]) for _ in range(2)]
        resting = send(built, {})
        healthy = send(built, {}, device="f2")
        assert await settled(good, healthy) == {Outcome.COMMITTED}
        assert await settled(*bad, resting) == {Outcome.DEAD_LETTERED}
        assert [body["reason"] for body in built.bodies("devices/f1/error")] == ["agent_error"] * 2 + ["agent_failed"]
        assert "Freezer.reading: ZeroDivisionError: on purpose" in built.bodies("devices/f1/error")[0]["error"]
        assert (await stored(built))["count"] == 1
        assert await count(built, tables.commands) == 1
        assert built.bodies("devices/f1/alarm") == [{"count": 1}]
        assert await count(built, tables.telemetry) == 2
        assert built.services.census.restarts == 2


@pytest.mark.parametrize("payload", [{"temperature": "x"}, {"huge": True}, {"forever": True}])
async def test_what_cannot_be_handled_is_a_dead_letter(url: str, payload: Any) -> None:
    async with house(url, Rules(handler_timeout=0.05), Freezer) as built:
        assert await settled(send(built, payload)) == {Outcome.DEAD_LETTERED}
        error = built.bodies("devices/f1/error")[0]
        wanted = {
            "temperature": ("wrong_type", "Expected `float`, got `str` - at `$.temperature`"),
            "huge": ("agent_error", "Freezer.reading: ValueError: the state has 300"),
            "forever": ("agent_error", "Freezer.reading: TimeoutError: not done within 0.05 s"),
        }[next(iter(payload))]
        assert (error["reason"], error["error"][: len(wanted[1])]) == wanted
        assert await stored(built) is None
        assert await count(built, tables.telemetry) == 0


async def test_a_redelivered_reading_causes_nothing_also_after_a_restart(url: str) -> None:
    async with house(url, RULES, Freezer) as built:
        first = send(built, {"id": "a", "command": True})
        again = send(built, {"id": "a", "command": True})
        assert await settled(first) == {Outcome.COMMITTED}
        assert await settled(again) == {Outcome.DEDUPLICATED}
    async with house(url, RULES, Freezer) as built:
        assert await settled(send(built, {"id": "a", "command": True})) == {Outcome.DEDUPLICATED}
        partly = send(built, [{"id": "a"}, {"id": "b"}, {"id": "b"}])
        assert await settled(partly) == {Outcome.COMMITTED}
        assert (await stored(built))["count"] == 2
        assert await count(built, tables.commands) == 1
        assert await count(built, tables.telemetry) == 2


async def test_what_many_agents_ask_the_database_at_once_is_one_query(url: str) -> None:
    async with house(url, RULES, Freezer) as built:
        receipts = [send(built, {"id": "a"}, device=f"f{n}") for n in range(100)]
        assert await settled(*receipts) == {Outcome.COMMITTED}
        assert built.services.agent_loader.queries <= 3
        assert built.services.known_ids.queries <= 5


async def test_the_device_s_protocol_goes_on_while_a_handler_waits(url: str, gate: asyncio.Event) -> None:
    rules = Rules(ping_interval=0.1, mailbox_limit=2)
    async with house(url, rules, Freezer) as built:
        built.router.attached("f1", Line(), listening=True)
        waiting = [send(built, {"wait": True}), send(built, {}), send(built, {})]
        await eventually(lambda: Freezer.calls == 1)
        over = send(built, {}, qos=0)
        other_stream = send(built, {"x": 1}, "telemetry/other")
        other_device = send(built, {}, device="f2")
        assert await settled(other_stream, other_device) == {Outcome.COMMITTED}
        await eventually(lambda: built.bodies("devices/f1/ping"))
        built.receive("devices/f1/pong", b"{}", qos=0)
        assert (over.outcome, [receipt.outcome for receipt in waiting]) == (Outcome.DROPPED, [None] * 3)
        device = built.router.find("f1")
        assert device is not None
        assert device.logic is not None
        assert device.logic.doing == "Freezer.reading"
        gate.set()
        assert await settled(*waiting) == {Outcome.COMMITTED}
        # Presence was told before the readings that had waited.
        assert (await stored(built)) == {"count": 3, "told": ["online"]}


async def test_commands_go_out_after_the_commit_and_their_end_comes_back(url: str) -> None:
    async with house(url, RULES, Freezer) as built:
        built.router.attached("f1", Line(), listening=True)
        await settled(send(built, {"command": True}))
        await eventually(lambda: built.bodies("devices/f1/command/request"))
        request = built.bodies("devices/f1/command/request")[0]
        assert (request["name"], request["args"]) == ("compressor", {"on": True})
        send(built, {"id": request["id"], "status": "succeeded", "result": 7}, "command/response")

        async def told() -> bool:
            state = await stored(built)
            return "succeeded 7" in state["told"]

        for _ in range(500):
            if await told():
                break
            await asyncio.sleep(0.01)
        assert await told()
        assert built.bodies("devices/f1/command/status")[0]["cause"] == "agent"


class Operator(Agent):
    """Carries out commands in the device's place."""

    class State(msgspec.Struct):
        done: int = 0

    @on.command("defrost")
    async def defrost(self, minutes: int, wait: bool = False) -> dict[str, int]:
        Freezer.calls += 1
        if wait:
            await Freezer.gate.wait()
        self.state.done += 1
        if minutes > 60:
            raise ValueError("that is too long")
        await self.command("fan", {"on": False})
        return {"minutes": minutes}


def defrosts(built: House) -> list[tuple[str, str]]:
    """The steps of commands named `defrost`, each with its cause."""
    bodies = built.bodies("devices/f1/command/status")
    return [(body["status"], body["cause"]) for body in bodies if body["name"] == "defrost"]


async def test_the_agent_carries_out_a_command_in_its_place_with_state_and_end_in_one_commit(url: str) -> None:
    async with house(url, RULES, Operator) as built:
        built.router.attached("f1", Line(), listening=True)
        command, _ = await built.router.send("f1", CommandRequest("defrost", {"minutes": 5}, id="k"), "api")
        await eventually(lambda: len(built.bodies("devices/f1/command/request")) == 1)
        assert built.bodies("devices/f1/command/request")[0]["name"] == "fan"
        steps = ["queued", "sent", "in_progress", "succeeded"]
        assert defrosts(built) == list(zip(steps, ["api", "agent", "agent", "agent"], strict=True))
        assert await stored(built, agent="Operator") == {"done": 1}
        found = await built.database.read(lambda connection: get_command(connection, command.command_id))
        assert found is not None
        assert (found.status, found.result) == (CommandStatus.SUCCEEDED, {"minutes": 5})
        # The same key is the same command: it is not carried out again.
        await built.router.send("f1", CommandRequest("defrost", {"minutes": 5}, id="k"), "api")
        assert len(defrosts(built)) == 4


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ({"minutes": "x"}, "Expected `int`, got `str` - at `$.minutes`"),
        (None, "Object missing required field `minutes`"),
        ({"minutes": 90}, "Operator.defrost: ValueError: that is too long"),
    ],
)
async def test_what_the_agent_cannot_carry_out_has_failed(url: str, args: Any, error: str) -> None:
    async with house(url, RULES, Operator) as built:
        command, _ = await built.router.send("f1", CommandRequest("defrost", args), "api")
        await eventually(lambda: defrosts(built) and defrosts(built)[-1][0] == "failed")
        found = await built.database.read(lambda connection: get_command(connection, command.command_id))
        assert found is not None
        assert found.error == error
        assert await stored(built, agent="Operator") is None
        assert await count(built, tables.commands) == 1


async def test_a_command_that_was_begun_is_not_carried_out_again_after_a_restart(url: str, gate: asyncio.Event) -> None:
    request = CommandRequest("defrost", {"minutes": 1, "wait": True}, ttl=1.5)
    async with house(url, RULES, Operator) as built:
        await built.router.send("f1", request, "api")
        await built.router.send("f1", CommandRequest("defrost", {"minutes": 2}, ttl=60), "api")
        await eventually(lambda: Freezer.calls == 1)
        await built.router.stop(0.1)
    gate.set()
    async with house(url, RULES, Operator) as built:
        await eventually(lambda: {status for status, _ in defrosts(built)} >= {"succeeded", "expired"})
        # The one that waited is carried out, the one that was begun is left to its deadline.
        assert Freezer.calls == 2
        assert await stored(built, agent="Operator") == {"done": 1}


async def test_a_command_is_begun_once_however_often_it_is_sent(url: str, gate: asyncio.Event) -> None:
    async with house(url, RULES, Operator) as built:
        await built.router.send("f1", CommandRequest("defrost", {"minutes": 1, "wait": True}), "api")
        await eventually(lambda: Freezer.calls == 1)
        behind = CommandRequest("defrost", {"minutes": 2}, attempts=5, retry_after=0.01)
        await built.router.send("f1", behind, "api")
        await eventually(lambda: defrosts(built).count(("sent", "retry")) > 0)
        gate.set()
        await eventually(lambda: len([step for step, _ in defrosts(built) if step == "succeeded"]) == 2)
        assert (await stored(built, agent="Operator")) == {"done": 2}


class Thermostat(Agent):
    """Goes by the twin."""

    class State(msgspec.Struct):
        target: float = 0.0

    @on.telemetry()
    async def reading(self, m: Reading) -> None:
        await self.desire({"target": m.temperature, "old": None})
        if m.broken:
            raise ZeroDivisionError("on purpose")

    @on.desired
    async def wanted(self, desired: dict[str, float]) -> None:
        self.state.target = desired["target"]
        await self.report({"target": desired["target"]})


async def test_the_twin_is_changed_with_the_message_and_changes_are_told(url: str) -> None:
    async with house(url, RULES, Thermostat) as built:
        good, bad = send(built, {"temperature": 7}), send(built, {"temperature": 8, "broken": True})
        assert await settled(good) == {Outcome.COMMITTED}
        assert await settled(bad) == {Outcome.DEAD_LETTERED}
        await eventually(
            lambda: [body["reported"] for body in built.bodies("devices/f1/state")] == [{}, {"target": 7.0}]
        )
        assert [body["desired"] for body in built.bodies("devices/f1/state")] == [{"target": 7.0}] * 2
        assert await stored(built, agent="Thermostat") == {"target": 7.0}
        # An operator's patch as well; what the agent cannot read it is not told, and the operator is.
        await settled(send(built, {"target": 9}, "state/desired"))
        await eventually(lambda: built.bodies("devices/f1/state")[-1]["reported"] == {"target": 9.0})
        await settled(send(built, {"target": "warm"}, "state/desired"))
        await eventually(lambda: built.bodies("devices/f1/state/rejected"))
        assert built.bodies("devices/f1/state/rejected")[0]["reason"] == "wrong_type"


async def test_another_class_takes_over_when_the_one_before_is_done(url: str, gate: asyncio.Event) -> None:
    async with house(url, RULES, Freezer) as built:
        waiting = [send(built, {"wait": True}), send(built, {})]
        await eventually(lambda: Freezer.calls == 1)
        built.services.logic_classes["operator"] = (Operator, Handlers(Operator))
        built.services.profiles._by_name["operator"] = Profile("operator", agent="operator")
        built.router.tell("f1", lambda device: device.registered("operator", device.admission))
        await built.router.send("f1", CommandRequest("defrost", {"minutes": 1}), "api")
        assert await settled(send(built, {})) == {Outcome.COMMITTED}  # a stream that the new class does not handle
        await eventually(lambda: ("sent", "agent") in defrosts(built))
        assert ("in_progress", "agent") not in defrosts(built)
        gate.set()
        assert await settled(*waiting) == {Outcome.COMMITTED}
        await eventually(lambda: ("succeeded", "agent") in defrosts(built))
        assert (await stored(built))["count"] == 2
        assert await stored(built, agent="Operator") == {"done": 1}


async def test_nothing_is_left_of_a_device_that_is_deleted(url: str) -> None:
    async with house(url, Rules(), Watchdog) as built:
        await settled(send(built, {}))
        assert await stored(built, agent="Watchdog") is not None
        await eventually(lambda: built.router.find("f1").messages == 1)  # type: ignore[union-attr]  # it is in memory
        await built.writer.barrier()
        await built.registry.delete("f1")
        assert await stored(built, agent="Watchdog") is None
        assert built.router.find("f1") is None


class Watchdog(Agent):
    class State(msgspec.Struct):
        checks: int = 0

    @every(seconds=1)
    async def check(self) -> None:
        self.state.checks += 1

    @on.telemetry()
    async def reading(self, m: Any) -> None:
        self.after(0.3, self.quiet)

    async def quiet(self) -> None:
        await self.publish(self.topic("quiet"), {})


async def test_it_is_told_what_an_agent_is_waiting_for(url: str, gate: asyncio.Event) -> None:
    async with house(url, RULES, Freezer) as built:
        assert built.router.waits(0.0, 10) == []
        first = send(built, {"wait": True})
        second = send(built, {})
        (state,) = built.router.waits(0.0, 10)
        assert (state.device_id, state.reason, state.messages) == ("f1", "state", 2)
        await eventually(lambda: Freezer.calls)
        (handler,) = built.router.waits(0.0, 10)
        assert (handler.reason, handler.handler, handler.messages) == ("handler", "Freezer.reading", 1)
        assert built.router.waits(3600.0, 10) == []
        async with built.database.transaction():
            gate.set()
            await eventually(lambda: [wait.reason for wait in built.router.waits(0.0, 10)] == ["commit"])
        await settled(first)
        await settled(second)
        await eventually(lambda: built.router.waits(0.0, 10) == [])


async def test_timers_run_without_messages_and_are_taken_up_after_a_restart(url: str) -> None:
    rules = Rules(sleep_after=0.05, evict_after=0.05, snapshot_interval=0.05)
    async with house(url, rules, Watchdog) as built:
        await settled(send(built, {}))
    async with house(url, rules, Watchdog) as built:
        await eventually(lambda: built.bodies("devices/f1/quiet"))
        await eventually(lambda: built.router.find("f1") is not None)

        async def checks() -> int:
            return int((await stored(built, agent="Watchdog"))["checks"])

        before = await checks()
        for _ in range(600):
            if await checks() > before:
                break
            await asyncio.sleep(0.01)
        assert await checks() > before
        assert len(built.bodies("devices/f1/quiet")) == 1


@pytest.mark.parametrize("state", ['{"count": "many"}', '{"count": 1}'])
async def test_a_state_that_cannot_be_read_is_kept_and_every_message_is_a_dead_letter(url: str, state: str) -> None:
    version = 1 if "many" in state else 2
    async with house(url, RULES, Freezer) as built:

        async def put(connection: Any) -> None:
            await connection.execute(
                tables.agent_states.insert().values(
                    device_id="f1", agent="Freezer", version=version, state=state, timers="{}"
                )
            )

        await built.writer.submit(put)
        assert await settled(send(built, {}), send(built, {})) == {Outcome.DEAD_LETTERED}
        assert {body["reason"] for body in built.bodies("devices/f1/error")} == {"bad_state"}
        assert await stored(built) == msgspec.json.decode(state)
        assert await count(built, tables.telemetry) == 0
        # Streams that the agent does not handle are stored all the same.
        assert await settled(send(built, {}, "telemetry/other")) == {Outcome.COMMITTED}


async def test_what_the_database_refuses_takes_the_state_with_it(url: str, kind: str) -> None:
    async with house(url, RULES, Freezer) as built:
        await settled(send(built, {}))
        # A table that will not take any more: the readings and the state of one message stand or fall together.
        trigger = {
            "sqlite": "CREATE TRIGGER no BEFORE INSERT ON commands BEGIN SELECT RAISE(ABORT, 'no commands'); END",
            "postgresql": "ALTER TABLE commands ADD CONSTRAINT no CHECK (false)",
        }[kind]

        async def forbid(connection: Any) -> None:
            await connection.execute(text(trigger))

        await built.writer.submit(forbid)
        bad, good = send(built, {"command": True}), send(built, {})
        assert await settled(bad) == {Outcome.DEAD_LETTERED}
        assert await settled(good) == {Outcome.COMMITTED}
        assert (await stored(built))["count"] == 2
        assert await count(built, tables.telemetry) == 2
        async with asyncio.timeout(5):
            letters = await built.database.read(_reasons)
        assert letters == [("not_storable", "devices/f1/telemetry")]


async def _reasons(connection: Any) -> list[tuple[str, str]]:
    query = select(tables.dead_letters.c.reason, tables.dead_letters.c.topic)
    return [(reason, topic) for reason, topic in await connection.execute(query)]


async def test_stopping_waits_for_what_is_being_handled_and_leaves_the_rest_with_its_sender(
    url: str, gate: asyncio.Event
) -> None:
    async with house(url, RULES, Freezer) as built:
        done = send(built, {"wait": True})
        await eventually(lambda: Freezer.calls == 1)
        asyncio.get_running_loop().call_later(0.1, gate.set)
        await built.router.stop(5.0)
        assert done.outcome is Outcome.COMMITTED
    gate.clear()
    async with house(url, RULES, Freezer) as built:
        left = [send(built, {"wait": True}), send(built, {})]
        await eventually(lambda: Freezer.calls == 2)
        await built.router.stop(0.1)
        assert await settled(*left) == {Outcome.RETRY}
    async with house(url, RULES, Freezer) as built:
        assert (await stored(built))["count"] == 1
        assert await count(built, tables.telemetry) == 1
