"""Drive an agent with messages and a clock, and see what it does: no broker, no database, no waiting.

    async with harness(Freezer, device_id="f1") as device:
        await device.telemetry({"temperature": -3})
        assert device.commands == [("compressor", {"on": True}, 30)]
        await device.advance(minutes=5)
        assert device.state.too_warm == 1

The class runs as it does in the bridge: one message at a time, what a handler does takes effect when it is over, and
none of it if it raises. What the bridge would keep as a dead letter is raised here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, NamedTuple, TypeVar, final

import msgspec

from bridge.agents.agent import Agent, HasState
from bridge.agents.effects import Effects, Seat, StoredState
from bridge.agents.handlers import Handlers
from bridge.agents.job import Job
from bridge.agents.logic import Logic, LogicRules
from bridge.agents.offload import Offload
from bridge.commands import Command, CommandRequest, CommandStatus, new_command
from bridge.errors import RefusedError
from bridge.messages import Message
from bridge.presence import Status, Transition
from bridge.readings import decode
from bridge.receipts import Ledger
from bridge.topics import Topics
from bridge.twin import Limits, Part, Patch, Twin

__all__ = ["Commanded", "Harness", "Published", "harness"]

S = TypeVar("S")
A_co = TypeVar("A_co", bound=Agent, covariant=True)

_BEGINNING: Final = 1_700_000_000.0
_TTL: Final = 60.0
_MAX_TTL: Final = 86_400.0


class Commanded(NamedTuple):
    """A command that the agent has sent its device; `ttl` in seconds."""

    name: str
    args: Any
    ttl: float


class Published(NamedTuple):
    """A message that the agent has published: bytes that are JSON are shown decoded."""

    topic: str
    payload: Any
    qos: int
    retain: bool


@asynccontextmanager
async def harness(
    agent: type[A_co],
    *,
    device_id: str = "device",
    now: float = _BEGINNING,
    stored: StoredState | None = None,
    handler_timeout: float = 30.0,
) -> AsyncIterator[Harness[A_co]]:
    """A device with an agent of this class. `now` is the time to begin with, in Unix seconds; `stored` a state that
    was saved before, for example by an older version of the class."""
    offload = Offload()
    try:
        device = Harness(agent, device_id, now, stored, handler_timeout, offload)
        await device._begin()
        yield device
    finally:
        await offload.stop()


@final
class Harness(Generic[A_co]):
    """One device, as the agent knows it, and everything that the agent has done."""

    def __init__(
        self,
        agent: type[A_co],
        device_id: str,
        now: float,
        stored: StoredState | None,
        handler_timeout: float,
        offload: Offload,
    ) -> None:
        """Made by `harness`."""
        self.device_id = device_id
        self.now = now
        """The time, in Unix seconds. It stands still but for `advance`."""
        self.commands: list[Commanded] = []
        """What the agent has sent its device."""
        self.published: list[Published] = []
        """What it has published."""
        self.twin = Twin()
        """The device's twin."""
        self.stored = stored
        """Its state as it would be found after a restart."""
        self._class = agent
        self._world = _World(self, offload)
        self._rules = LogicRules(handler_timeout=handler_timeout)
        self._logic = self._new_logic()
        self._epoch = 0

    @property
    def state(self: Harness[HasState[S]]) -> S:  # type: ignore[type-var]  # a protocol instead of Agent: it only tells S
        """The agent's last committed state, a copy."""
        kind: type[S] = self._class.State  # type: ignore[assignment]  # of the class itself, not of an instance
        return kind() if self.stored is None else msgspec.json.decode(self.stored.state, type=kind)

    # ------------------------------------------------------------------ what happens to the device

    async def telemetry(self, payload: Any, stream: str = "default") -> None:
        """The device sends readings of a stream: an object, or a list of them, or the bytes of such JSON."""
        await self._send(f"telemetry/{stream}", stream, payload)

    async def event(self, kind: str, payload: Any) -> None:
        """The device sends an event."""
        await self._send(f"event/{kind}", f"event/{kind}", payload)

    async def presence(self, status: Status | str, cause: str = "test") -> None:
        """The device comes or goes: `online`, `silent`, `offline` or `unknown`."""
        self._epoch += 1
        self._logic.presence_changed(Transition(Status(status), cause, self._epoch, self.now))
        await self._settle()

    async def desired(self, desired: Any) -> None:
        """The twin's desired part is now `desired`."""
        self.twin = msgspec.structs.replace(self.twin, desired=desired)
        self._logic.desired_changed(msgspec.json.encode(desired).decode())
        await self._settle()

    async def respond(self, name: str, result: Any = None, *, error: str | None = None) -> None:
        """The device answers the oldest open command `name` that the agent has sent it: with `error` it has failed."""
        for command in self._world.open:
            if command.name == name:
                self._world.open.remove(command)
                command.status = CommandStatus.SUCCEEDED if error is None else CommandStatus.FAILED
                command.result, command.error, command.updated_at = result, error, self.now
                self._logic.command_ended(command)
                return await self._settle()
        raise LookupError(f"{self._class.__name__} has sent no command {name!r} that is not answered")

    async def command(self, name: str, args: Any = None) -> Any:
        """An operator sends a command that the agent carries out itself; its result."""
        if not self._logic.takes(name):
            raise LookupError(f"{self._class.__name__} carries out no command {name!r}: it would go to the device")
        self._logic.execute(self._world.new_command(name, args, None))
        await self._settle()
        return self._world.result

    async def advance(self, *, hours: float = 0.0, minutes: float = 0.0, seconds: float = 0.0) -> None:
        """Time goes by: timers are called and commands expire, each at its time and in their order."""
        end = self.now + hours * 3600 + minutes * 60 + seconds
        await self._tick()
        while (due := min(self._logic.next_due, self._world.next_deadline)) <= end:
            self.now = max(self.now, due)
            for command in [c for c in self._world.open if c.expires_at <= self.now]:
                self._world.open.remove(command)
                command.status = CommandStatus.EXPIRED
                self._logic.command_ended(command)
            await self._tick()
        self.now = end

    async def restart(self) -> None:
        """The bridge is restarted: the agent is built anew from what is stored."""
        self._logic = self._new_logic()
        await self._begin()

    def patch(self, part: Part, changes: dict[str, Any]) -> None:
        """The twin is changed, by the agent; of a change of desired it is told."""
        before = self.twin
        self.twin = before.patched(part, Patch(changes), self.now, Limits())
        if self.twin.desired != before.desired:
            self._logic.desired_changed(msgspec.json.encode(self.twin.desired).decode())

    # ------------------------------------------------------------------

    async def _begin(self) -> None:
        if self._logic.keeps_time or (self.stored is not None and self.stored.timers):
            self._logic.build()
        await self._settle()

    def _new_logic(self) -> Logic:
        return Logic(self._class, Handlers(self._class), self._world, self._rules)

    async def _send(self, name: str, stream: str, payload: Any) -> None:
        data = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
        topic = self._world.topics.of(self.device_id, name)
        address = self._world.topics.parse(topic)
        if address is None:
            raise ValueError(f"{topic} is no topic of a device")
        message = Message(address, data, self.now, self._world.ledger.receipt(qos=1))
        self._logic.take(message, stream, decode(data, self.now))
        await self._settle()

    async def _tick(self) -> None:
        self._logic.tick(self.now)
        await self._settle()

    async def _settle(self) -> None:
        await self._logic.finish()
        problem, self._world.problem = self._world.problem, None
        if problem is not None:
            raise problem


@final
class _World:
    """What is around the agent in a test: lists instead of a database and a broker."""

    def __init__(self, device: Harness[Any], offload: Offload) -> None:
        self.topics = Topics()
        self.ledger = Ledger()
        self.open: list[Command] = []
        self.problem: BaseException | None = None
        self.result: Any = None
        self._device = device
        self._offload = offload
        self._ids: set[tuple[str, str]] = set()

    @property
    def next_deadline(self) -> float:
        return min((command.expires_at for command in self.open), default=float("inf"))

    def clock(self) -> float:
        return self._device.now

    def seat(self, timers: frozenset[str]) -> Seat:
        return Seat(
            self._device.device_id,
            clock=self.clock,
            topic_of=self.topics.of,
            new_command=self.new_command,
            offload=self._offload,
            timers=timers,
        )

    def new_command(self, name: str, args: Any, ttl: float | None) -> Command:
        request = CommandRequest(name, args, ttl=ttl)
        return new_command(self._device.device_id, request, self._device.now, ttl=_TTL, max_ttl=_MAX_TTL)

    async def load(self, _state_name: str) -> StoredState | None:
        return self._device.stored

    async def known(self, stream: str, message_ids: list[str]) -> set[str]:
        return {message_id for message_id in message_ids if (stream, message_id) in self._ids}

    async def begin(self, _command: Command) -> bool:
        return True

    async def commit(self, job: Job, effects: Effects, _state_name: str) -> None:
        device = self._device
        self._ids |= {(job.stream, r.message_id) for r in job.readings if r.message_id is not None}
        if effects.state is not None:
            device.stored = effects.state
        for command in effects.commands:
            self.open.append(command)
            device.commands.append(Commanded(command.name, command.args, command.expires_at - command.created_at))
        device.published += [Published(p.topic, _shown(p.payload), p.qos, p.retain) for p in effects.publications]
        for part, patch in effects.patches:
            device.patch(part, patch)
        if effects.answer is not None:
            self.result = effects.answer.result

    def refuse(self, _job: Job, reason: str, text: str) -> None:
        if self.problem is None:
            self.problem = RefusedError(reason, text)

    def failed(self, error: BaseException) -> None:
        self.problem = error

    def call_before(self, when: float) -> None:
        """`Harness.advance` asks the logic itself."""


def _shown(payload: bytes) -> Any:
    try:
        return msgspec.json.decode(payload)
    except msgspec.DecodeError:
        return payload.decode(errors="replace")
