"""Commands against a model: the real router, agents, writer and SQLite through whatever can happen to a command.

A state machine (hypothesis) sends, acknowledges late, twice or never, answers late and twice, cancels, cuts
connections, moves the clock, and abandons the bridge in the middle of a commit. After each step the database must say
what the model says. `BRIDGE_TEST_MODEL=200` runs that many examples instead of a few; `pytest -s` prints what was done.
What a few examples may do without by chance, a crash in each of a command's states, is done by script as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bridge.agents.services import Rules
from bridge.agents.timers import TimerWheel
from bridge.commands import PREDECESSORS, CommandRequest, CommandStatus
from bridge.errors import RefusedError
from bridge.receipts import Outcome, Receipt
from bridge.registry import Admission
from bridge.storage import commands as stored
from bridge.storage import migrate
from bridge.storage.database import Database
from bridge.storage.writer import Writer
from tests.integration.agents.house import House, Line

T = TypeVar("T")
S = CommandStatus
EXAMPLES = int(os.environ.get("BRIDGE_TEST_MODEL", "4"))
STEPS = 30
DEVICES = ("d1", "d2")
RECENT = 6
"""Commands, and requests that have reached a device, among which one is chosen."""
# Nothing happens in here but what the machine does: nobody is pinged, put to sleep or forgotten.
RULES = Rules(ping_interval=1e9, sleep_after=1e9, evict_after=1e9, snapshot_interval=1e9)
did: Counter[str] = Counter()


@dataclass
class Expected:
    """What the model says of one command."""

    command_id: str
    device_id: str
    key: str
    name: str
    expires_at: float
    max_attempts: int
    retry_after: float
    status: CommandStatus = S.QUEUED
    attempts: int = 0
    sent_at: float = 0.0

    def may_become(self, status: CommandStatus) -> bool:
        return self.status in PREDECESSORS[status] and (status is not S.SENT or self.attempts < self.max_attempts)


@dataclass
class Delivery:
    """A request that has reached a device."""

    command_id: str
    at: float
    on_ack: Callable[[], None]
    life: int


class Machine(RuleBasedStateMachine):
    """Times are halves of a second, deadlines and retries fall on quarters: nothing is due at the very moment that
    somebody looks.

    What a crash leaves depends on the moment, and is not the same when hypothesis does the same steps again. So which
    rules there are, and what is drawn for them, must not depend on it: a rule that finds nothing to do does nothing.
    """

    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="commands-model-"))
        shutil.copy(self.template, self.folder / "bridge.db")
        self.now = 1_790_000_000.5
        self.life = 0
        self.commands: dict[str, Expected] = {}
        self.lines: dict[str, Line | None] = dict.fromkeys(DEVICES)
        self.deliveries: dict[str, list[Delivery]] = {device_id: [] for device_id in DEVICES}
        self.due: dict[str, list[str]] = {device_id: [] for device_id in DEVICES}
        """By device the ids of the requests that it should have got, in order."""
        self.published: dict[str, list[str]] = {}
        self.unpublished: dict[str, set[int]] = {}
        """Steps that were stored when the bridge was killed, and not published any more."""
        self.ended: dict[str, CommandStatus] = {}
        self.quiet = 0
        """Steps since the bridge was started."""
        self.asked = 0
        """How often a command was to be sent."""

    # ------------------------------------------------------------------ the bridge

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    @initialize()
    def begin(self) -> None:
        self.run(self._start())
        self.connect("d1")

    async def _start(self) -> None:
        database = await Database.open(f"sqlite+aiosqlite:///{self.folder}/bridge.db")
        writer = Writer(database)
        await writer.start()
        self.built = House(database, writer, RULES, None, lambda: self.now, None, Admission.ACCEPTED)
        self.built.services.wheel = TimerWheel(lambda: self.now)
        self.built.services.publish = self._publish
        await self.built.router.start()
        # The clock may only go on when all commands are taken up: who comes later is seen at the wheel's next turn.
        await self._settle()
        self.life += 1
        self.quiet = 0

    async def _abandon(self) -> None:
        built = self.built
        built.services.wheel.stop()
        built.router._arrivals._waiting.clear()  # the dead are told of no connection
        cells = list(built.router._cells.values())
        tasks = [cell._task for cell in cells]
        for cell in cells:
            cell.abandon()
        ends = [task for task in (built.writer.task, built.services.loader._task, *tasks) if task is not None]
        for task in ends:
            task.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
        await built.database.close()

    async def _settle(self) -> None:
        # Connections that come right after others would be told to their agents a moment later.
        self.built.router._arrivals.flush()
        while True:
            await self.built.writer.barrier()
            if not self.built.writer.pending and all(cell.idle for cell in self.built.router._cells.values()):
                return
            await asyncio.sleep(0)

    def settle(self) -> None:
        self.run(self._settle())

    def _publish(self, topic: str, payload: bytes, **more: Any) -> int:
        _, device_id, name = topic.split("/", 2)
        body = msgspec.json.decode(payload)
        if name == "command/status":
            self.published.setdefault(body["id"], []).append(body["status"])
        if name != "command/request" or self.lines[device_id] is None:
            return 0
        did["requests"] += 1
        assert more["expires_at"] == body["expires_at"]
        assert self.now < body["expires_at"], "nothing is delivered after its deadline"
        self.deliveries[device_id].append(Delivery(body["id"], self.now, more["on_ack"], self.life))
        return 1

    # ------------------------------------------------------------------ what the model does

    def _of(self, device_id: str) -> list[Expected]:
        return [command for command in self.commands.values() if command.device_id == device_id]

    def _attempt(self, command: Expected) -> None:
        if self.lines[command.device_id] is None or not command.may_become(S.SENT):
            return
        command.status = S.SENT
        command.attempts += 1
        command.sent_at = self.now
        self.due[command.device_id].append(command.command_id)

    def _time_has_passed(self) -> None:
        for command in self.commands.values():
            if command.status.final:
                continue
            if command.expires_at < self.now:
                command.status = S.EXPIRED
            elif command.status is S.SENT and command.sent_at + command.retry_after < self.now:
                self._attempt(command)

    def _recent(self, which: int) -> Expected | None:
        """One of the last commands; None if there is none yet."""
        last = list(self.commands.values())[-RECENT:]
        return last[which % len(last)] if last else None

    def _adopt(self, found: Any) -> None:
        self.commands[found.command_id] = Expected(
            found.command_id, found.device_id, found.key, found.name, found.expires_at, found.max_attempts,
            found.retry_after,
        )  # fmt: skip

    # ------------------------------------------------------------------ what can happen

    def _request(self, key: str | None, name: str, ttl: int, attempts: int) -> CommandRequest:
        self.asked += 1
        self.now += 0.001  # commands are in the order of their times: no two are sent at the same one
        return CommandRequest(name, None, key, ttl + 0.25, attempts, 2.25)

    sending: ClassVar[dict[str, Any]] = {
        "device_id": st.sampled_from(DEVICES),
        "key": st.sampled_from(["a", "b", None]),
        "name": st.sampled_from(["open", "open", "close"]),
        "ttl": st.sampled_from([3, 20, 100, 100]),
        "attempts": st.integers(1, 3),
    }

    @rule(**sending)
    def send(self, device_id: str, key: str | None, name: str, ttl: int, attempts: int) -> None:
        did["send"] += 1
        request = self._request(key, name, ttl, attempts)
        known = next((c for c in self._of(device_id) if key is not None and c.key == key), None)
        try:
            command, created = self.run(self.built.router.send(device_id, request, "api"))
        except RefusedError as error:
            did["send: refused"] += 1
            conflict = known is not None and known.name != name
            if error.reason == "key_conflict" and conflict:
                return
            raise
        assert created is (known is None)
        if known is not None:
            assert (command.command_id, known.name) == (known.command_id, name)
            did["send: known"] += 1
        else:
            self._adopt(command)
            self._attempt(self.commands[command.command_id])
        self.settle()

    @precondition(lambda self: not all(self.lines.values()))
    @rule(device_id=st.sampled_from(DEVICES))
    def connect(self, device_id: str) -> None:
        if self.lines[device_id] is not None:
            return
        did["connect"] += 1
        self.lines[device_id] = line = Line(device_id)
        self.built.router.attached(device_id, line, listening=True)
        self.settle()
        for command in self._of(device_id):
            if command.expires_at > self.now:
                self._attempt(command)

    @precondition(lambda self: all(self.lines.values()))
    @rule(device_id=st.sampled_from(DEVICES))
    def disconnect(self, device_id: str) -> None:
        line, self.lines[device_id] = self.lines[device_id], None
        if line is None:
            return
        did["disconnect"] += 1
        self.built.router.detached(device_id, line, "error")
        self.settle()

    which = st.integers(0, RECENT - 1)

    @precondition(lambda self: self.asked)
    @rule(which=which, twice=st.booleans())
    def acknowledge(self, which: int, twice: bool) -> None:
        """Any request of this life, also one that was acknowledged before, or is long over."""
        alive = [d for deliveries in self.deliveries.values() for d in deliveries if d.life == self.life][-RECENT:]
        if not alive:
            return
        did["acknowledge"] += 1
        delivery = alive[which % len(alive)]
        for _ in range(1 + twice):
            delivery.on_ack()
        self.settle()
        command = self.commands[delivery.command_id]
        if command.may_become(S.DELIVERED):
            command.status = S.DELIVERED

    answering: ClassVar[dict[str, Any]] = {
        "which": which,
        "status": st.sampled_from([S.IN_PROGRESS, S.SUCCEEDED, S.SUCCEEDED, S.FAILED]),
    }

    def _answer(self, command: Expected, status: CommandStatus) -> Receipt:
        body = msgspec.json.encode({"id": command.command_id, "status": status})
        return self.built.receive(f"devices/{command.device_id}/command/response", body)

    @precondition(lambda self: self.asked)
    @rule(**answering)
    def respond(self, which: int, status: CommandStatus) -> None:
        command = self._recent(which)
        if command is None:
            return
        did["respond"] += 1
        receipt = self._answer(command, status)
        self.settle()
        assert receipt.outcome is Outcome.COMMITTED
        if command.may_become(status):
            command.status = status
        else:
            did["respond: late"] += 1

    @precondition(lambda self: self.asked)
    @rule(which=which)
    def cancel(self, which: int) -> None:
        command = self._recent(which)
        if command is None:
            return
        did["cancel"] += 1
        done = self.run(self.built.router.cancel(command.device_id, command.command_id, "api"))
        self.settle()
        assert done is not command.status.final
        if done:
            command.status = S.CANCELLED

    @rule(seconds=st.sampled_from([1, 1, 3, 3, 30]))
    def time_passes(self, seconds: int) -> None:
        did["time passes"] += 1
        self.now += seconds
        self.built.services.wheel.turn()
        self.settle()
        self._time_has_passed()

    # ------------------------------------------------------------------ crashes

    @precondition(lambda self: self.asked and self.quiet >= 10)
    @rule(turns=st.integers(0, 30), first=st.sampled_from(["respond", "cancel", "connect", "nothing"]), **answering)
    def crash(self, turns: int, first: str, which: int, status: CommandStatus) -> None:
        """The bridge is gone while it does something; whatever was answered or published before is there."""
        command = self._recent(which)
        receipt = None
        if first == "respond" and command is not None:
            receipt = self._answer(command, status)
        elif first == "cancel" and command is not None:
            command_id = command.command_id
            self.built.router.cell(command.device_id).tell(lambda device: device.book.cancel(command_id, "api"))
        elif first == "connect":
            for device_id in DEVICES:
                if self.lines[device_id] is None:
                    self.lines[device_id] = line = Line(device_id)
                    self.built.router.attached(device_id, line, listening=True)
        self._crash(turns)
        if command is not None and receipt is not None and receipt.outcome is Outcome.COMMITTED:
            assert status in self.run(self._steps(command.command_id, late=True)), "acknowledged, and not there"

    @precondition(lambda self: self.quiet >= 10)
    @rule(turns=st.integers(0, 30), **sending)
    def crash_while_sending(
        self, turns: int, device_id: str, key: str | None, name: str, ttl: int, attempts: int
    ) -> None:
        sending = self.loop.create_task(
            self.built.router.send(device_id, self._request(key, name, ttl, attempts), "api")
        )
        answered = self._crash(turns, sending)
        if answered is not None:
            assert answered.command_id in self.commands, "answered, and not stored"

    def _crash(self, turns: int, sending: asyncio.Task[Any] | None = None) -> Any:
        did["crash"] += 1

        async def crash() -> Any:
            for _ in range(turns):
                await asyncio.sleep(0)
            answer = None
            if sending is not None and sending.done():
                with contextlib.suppress(RefusedError):
                    answer, _created = sending.result()
            await self._abandon()
            if sending is not None:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            return answer

        answer = self.run(crash())
        self.lines = dict.fromkeys(DEVICES)
        self.run(self._start())
        self.run(self._compare_after_a_crash())
        self.time_passes(1)
        self.connect("d1")
        return answer

    async def _compare_after_a_crash(self) -> None:
        """What was under way has been stored or not: the model takes over which, if it may be."""
        for device_id in DEVICES:
            wanted = stored.Wanted(device_id)
            found_all, _ = await self.built.database.read(partial(stored.list_commands, wanted=wanted, limit=1000))
            for found in found_all:
                if found.command_id not in self.commands:
                    did["crash: stored and not answered"] += 1
                    self._adopt(found)
                expected = self.commands[found.command_id]
                if found.status is not expected.status:
                    did["crash: a step more"] += 1
                    legal = expected.status in PREDECESSORS[found.status] or found.status is S.SENT
                    assert legal, (expected, found.status)
                expected.status, expected.attempts = found.status, found.attempts
                expected.sent_at = found.updated_at
                steps = await self._steps(found.command_id)
                published = self.published.get(found.command_id, [])
                skipped = self.unpublished.setdefault(found.command_id, set())
                skipped |= set(range(len(published) + len(skipped), len(steps)))
            self.due[device_id] = [delivery.command_id for delivery in self.deliveries[device_id]]

    # ------------------------------------------------------------------ what must always be so

    async def _steps(self, command_id: str, *, late: bool = False) -> list[str]:
        events = await self.built.database.read(partial(stored.command_events, command_id=command_id))
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        return [event.status for event in events if late or event.cause != "late_response"]

    @invariant()
    def the_database_says_what_the_model_says(self) -> None:
        if self.life:
            self.quiet += 1
            self.run(self._compare())

    async def _compare(self) -> None:
        for device_id, deliveries in self.deliveries.items():
            assert [delivery.command_id for delivery in deliveries] == self.due[device_id]
        reached = Counter(d.command_id for deliveries in self.deliveries.values() for d in deliveries)
        keys: set[tuple[str, str]] = set()
        for command_id, expected in self.commands.items():
            found = await self.built.database.read(partial(stored.get_command, command_id=command_id))
            assert found is not None
            assert (found.status, found.attempts) == (expected.status, expected.attempts), expected
            assert (found.device_id, found.key) not in keys, "one key, one command"
            keys.add((found.device_id, found.key))
            assert reached[command_id] <= found.attempts <= found.max_attempts
            if command_id in self.ended:
                assert found.status is self.ended[command_id], "a final status changed"
            elif found.status.final:
                self.ended[command_id] = found.status
                did[f"ended: {found.status.value}"] += 1
            steps = await self._steps(command_id)
            assert steps[0] == "queued"
            for before, after in pairwise(steps):
                assert before in PREDECESSORS[S(after)], steps
            assert steps[-1] == found.status
            skipped = self.unpublished.get(command_id, set())
            told = [step for position, step in enumerate(steps) if position not in skipped]
            assert self.published.get(command_id, []) == told, "published is what is stored"

    def teardown(self) -> None:
        if self.life:
            self.run(self._abandon())
        self.loop.close()
        shutil.rmtree(self.folder)
        did["examples"] += 1
        did["commands"] += len(self.commands)


@pytest.fixture(scope="module", autouse=True)
def template(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A migrated database, of which every machine has a copy."""
    Machine.template = tmp_path_factory.mktemp("model") / "bridge.db"
    asyncio.run(migrate.upgrade(f"sqlite+aiosqlite:///{Machine.template}"))


# The warnings that are let through are about connections of bridges that were abandoned in a commit.
abandons = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@abandons
def test_commands_are_as_the_model_has_it() -> None:
    did.clear()
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(", ".join(f"{what} {number}" for what, number in sorted(did.items())))
    if EXAMPLES >= 20:  # a few may do without by chance
        assert did["crash"]
        assert did["requests"]


LIFE: dict[CommandStatus, Callable[[Machine], None]] = {
    S.QUEUED: lambda machine: machine.send("d2", "a", "open", 100, 2),
    S.SENT: lambda machine: machine.connect("d2"),
    S.DELIVERED: lambda machine: machine.acknowledge(0, twice=True),
    S.IN_PROGRESS: lambda machine: machine.respond(0, S.IN_PROGRESS),
    S.SUCCEEDED: lambda machine: machine.respond(0, S.SUCCEEDED),
}
"""What brings a command to each of its states, one after the other."""


@abandons
@pytest.mark.parametrize(
    ("state", "first"),
    [
        (S.QUEUED, "connect"),
        (S.SENT, "respond"),
        (S.DELIVERED, "cancel"),
        (S.IN_PROGRESS, "respond"),
        (S.SUCCEEDED, "nothing"),
    ],
)
def test_a_crash_in_each_state_by_script(state: CommandStatus, first: str) -> None:
    """`first` is under way when the bridge is gone."""
    did.clear()
    machine = Machine()
    try:
        machine.begin()
        for step, bring in LIFE.items():
            bring(machine)
            machine.the_database_says_what_the_model_says()
            if step is state:
                break
        (command,) = machine.commands.values()
        assert command.status is state
        machine.crash(4, first, 0, S.FAILED)
        machine.the_database_says_what_the_model_says()
        machine.send("d2", "a", "open", 100, 2)
        assert did["send: known"] == 1, "the key is that of the command, whatever has become of it"
        machine.crash_while_sending(4, "d1", "b", "close", 100, 1)
        machine.connect("d2")
        machine.the_database_says_what_the_model_says()
        for _ in range(4):
            machine.time_passes(30)
            machine.the_database_says_what_the_model_says()
        assert all(known.status.final for known in machine.commands.values())
        assert did["crash"] == 2
        assert did["requests"] >= (state is not S.QUEUED)
    finally:
        machine.teardown()


@abandons
def test_a_deadline_that_passes_while_the_bridge_is_gone() -> None:
    machine = Machine()
    try:
        machine.begin()
        machine.send("d2", "a", "open", 3, 1)
        for _ in range(3):
            machine.time_passes(1)
        machine.crash(0, "nothing", 0, S.FAILED)  # a quarter of a second before it; a second later it is back
        machine.the_database_says_what_the_model_says()
        assert [command.status for command in machine.commands.values()] == [S.EXPIRED]
    finally:
        machine.teardown()
