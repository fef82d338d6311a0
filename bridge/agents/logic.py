"""Where one device's logic runs: its handlers called one at a time, their effects committed or dropped."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, final

import msgspec
import structlog

from bridge.agents.agent import Agent
from bridge.agents.effects import Answer, Effects, StoredState
from bridge.agents.handlers import Handlers
from bridge.agents.job import Job, World
from bridge.agents.limits import Limit
from bridge.agents.state import StateError, changed, restored
from bridge.commands import Command, CommandStatus
from bridge.errors import RefusedError, StorageUnavailableError
from bridge.messages import Message
from bridge.presence import Transition
from bridge.readings import Reading
from bridge.receipts import Outcome

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_CONTROL: Final = 1_000
"""Presence changes, responses and commands that wait for one agent; further ones are not told, and logged."""
RETRY_AFTER: Final = 1.0
"""Seconds between two tries to read while the database is away."""


@final
@dataclass(frozen=True, slots=True)
class LogicRules:
    """How device logic is supervised; times in seconds."""

    handler_timeout: float = 30.0
    restarts: int = 5
    restart_window: float = 60.0
    mailbox_limit: int = 10_000


@final
class Logic:
    """One device's agent and what waits for it.

    There is a task while there is something to do, and none else. Control (timers, presence, responses, commands) goes
    before data (readings), and the next thing is begun when what the last one caused is committed.
    """

    __slots__ = (
        "_agent", "_before", "_class", "_control", "_data", "_failures", "_handlers", "_loaded", "_rules", "_stored",
        "_task", "_timers", "_timers_waiting", "_world", "committing", "doing", "since",
    )  # fmt: skip

    def __init__(self, agent_class: type[Agent], handlers: Handlers, world: World, rules: LogicRules) -> None:
        self._class = agent_class
        self._handlers = handlers
        self._world = world
        self._rules = rules
        self._agent: Agent | None = None
        self._loaded = False
        self._stored: StoredState | None = None
        self._timers: dict[str, float] = {}
        self._timers_waiting: set[str] = set()
        self._control: deque[Job] = deque()
        self._data: deque[Job] = deque()
        self._failures = Limit(rules.restarts, rules.restart_window)
        self._task: asyncio.Task[None] | None = None
        self._before: Logic | None = None
        self.doing = ""
        """The handler that is running, for those who ask what an agent is waiting for."""
        self.committing = False
        """Whether it is over, and what it has caused is being committed."""
        self.since = 0.0
        """When it began, in Unix seconds."""

    # ------------------------------------------------------------------ what comes in

    def take(self, message: Message, stream: str, decoded: Reading | list[Reading]) -> bool:
        """A message with readings. False if the agent does not handle its stream; else its receipt will be settled.

        Raises RefusedError `wrong_type` when a reading does not fit the handler.
        """
        handler = self._handlers.readings.get(stream)
        if handler is None:
            return False
        if len(self._data) >= self._rules.mailbox_limit and message.receipt.qos == 0:
            message.receipt.settle(Outcome.DROPPED, "mailbox_full")
            return True
        if isinstance(decoded, Reading):
            readings = [decoded]
            args = [handler.decode(decoded.payload)]
        else:
            readings = decoded
            args = []
            for index, reading in enumerate(decoded):
                try:
                    args.append(handler.decode(reading.payload))
                except RefusedError as error:
                    raise RefusedError(error.reason, f"element {index}: {error}") from error
        self._data.append(
            Job(handler.title, handler.attribute, args, message=message, stream=stream, readings=readings)
        )
        self._wake()
        return True

    def presence_changed(self, transition: Transition) -> None:
        """The device has come or gone."""
        if self._handlers.presence is not None:
            self._tell(self._handlers.presence, transition)

    def command_ended(self, command: Command) -> None:
        """A command that was sent to the device has its last status."""
        attribute = self._handlers.responses.get(command.name)
        if attribute is not None:
            self._tell(attribute, msgspec.structs.replace(command))

    def desired_changed(self, desired: str) -> None:
        """The twin's desired part is now this JSON object. Raises RefusedError `wrong_type` if it does not fit."""
        handler = self._handlers.desired
        if handler is not None:
            self._tell(handler.attribute, handler.decode(desired))

    def takes(self, name: str) -> bool:
        """Whether the agent carries out commands of this name itself."""
        return name in self._handlers.commands

    def execute(self, command: Command) -> None:
        """Call the handler of a command that is stored."""
        handler = self._handlers.commands[command.name]
        job = Job(handler.title, handler.attribute, command=command)
        try:
            job.args = [handler.bind(command.args)]
        except RefusedError as error:
            self._world.refuse(job, error.reason, str(error))
            return
        if len(self._control) >= MAX_CONTROL:
            self._world.refuse(job, "too_many_commands", f"{MAX_CONTROL} things wait for the agent already")
            return
        self._control.append(job)
        self._wake()

    def build(self) -> None:
        """Build the agent before there is anything else to do for it, so that its timers run."""
        if not self._loaded:
            self._control.append(Job(f"{self._handlers.title}.start", ""))
            self._wake()

    def tick(self, now: float) -> None:
        """Call what is due by `now`."""
        for name, due in self._timers.items():
            if due <= now and name not in self._timers_waiting:
                self._timers_waiting.add(name)
                self._control.append(Job(f"{self._handlers.title}.{name}", name, timer=name))
                self._wake()

    @property
    def next_due(self) -> float:
        """When a timer is due next, in Unix seconds; infinity if none is set."""
        return min(
            (due for name, due in self._timers.items() if name not in self._timers_waiting), default=float("inf")
        )

    @property
    def waiting(self) -> int:
        """How many things wait for the one that is being handled."""
        return len(self._control) + len(self._data)

    @property
    def keeps_time(self) -> bool:
        """Whether the class has timers of its own, which run as soon as the device is known."""
        return bool(self._handlers.every)

    @property
    def forgettable(self) -> bool:
        """Whether the stored state is all there is to know: nothing is going on, and no timer is set."""
        return self._task is None and not self._timers

    def _tell(self, attribute: str, arg: Any) -> None:
        if len(self._control) >= MAX_CONTROL:
            log.warning("an agent is too slow: it is not told", handler=attribute, waiting=len(self._control))
            return
        self._control.append(Job(f"{self._handlers.title}.{attribute}", attribute, [arg]))
        self._wake()

    # ------------------------------------------------------------------ life

    def follow(self, before: Logic) -> None:
        """Take the place of another class's logic, which first finishes what it has to do."""
        self._before = before
        self._wake()

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being handled."""
        return self._task is None

    async def finish(self) -> None:
        """Wait until nothing waits and nothing is being handled."""
        while self._task is not None:
            await asyncio.wait([self._task])

    def abandon(self) -> None:
        """Stop at once. What waits is not acknowledged: the senders still have it."""
        if self._before is not None:
            self._before.abandon()
        if self._task is not None:
            self._task.cancel()

    def _wake(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        job: Job | None = None
        try:
            if self._before is not None:
                await self._before.finish()
                self._before = None
            while self._control or self._data:
                job = (self._control or self._data).popleft()
                try:
                    await self._handle(job)
                except StorageUnavailableError:
                    raise
                except Exception as error:
                    # A fault of the bridge, and it concerns this message alone: the next ones go on.
                    log.exception("device logic could not be run", handler=job.title)
                    self._reset(job)
                    if not job.handed_over:
                        self._world.refuse(job, "internal_error", _said(error))
        except (asyncio.CancelledError, StorageUnavailableError) as error:
            # The bridge stops: whatever is not committed stays with its sender. What is handed over is the writer's.
            for left in (*([job] if job and not job.handed_over else []), *self._control, *self._data):
                if left.message is not None and left.message.receipt.outcome is None:
                    left.message.receipt.settle(Outcome.RETRY)
            self._control.clear()
            self._data.clear()
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._task = None
            self.doing = ""

    # ------------------------------------------------------------------ one thing

    async def _handle(self, job: Job) -> None:
        world = self._world
        self._timers_waiting.discard(job.timer)
        self.since = now = world.clock()
        if self._failures.reached(now):
            text = "the agent failed too often and rests until its restart window is over"
            self._put_off(job)
            world.refuse(job, "agent_failed", text)
            return
        self.doing = job.title
        try:
            agent, effects = await self._begin(job)
            if job.command is not None and not await world.begin(job.command):
                return
            await self._call(agent, job, effects)
        except StateError as error:
            world.refuse(job, "bad_state", str(error))
        except RefusedError as error:
            self._reset(job)
            world.refuse(job, error.reason, str(error))
        except StorageUnavailableError:
            raise
        except (Exception, SystemExit) as error:
            # Device logic may raise anything; it concerns this device alone.
            self._failures.record(world.clock())
            self._reset(job)
            log.exception("agent failed and is restarted", handler=job.title)
            world.failed(error)
            world.refuse(job, "agent_error", f"{job.title}: {_said(error)}")
        else:
            await self._commit(job, effects)

    async def _begin(self, job: Job) -> tuple[Agent, Effects]:
        """The agent, built if need be, and where its effects are gathered."""
        if not self._loaded:
            self._stored = await _patiently(lambda: self._world.load(self._class.stored_as()))
            self._timers = dict(self._stored.timers) if self._stored is not None else {}
            self._loaded = True
        agent = self._agent
        if agent is None:
            agent = self._class(
                self._world.seat(self._handlers.timers), restored(self._class, self._handlers, self._stored)
            )
            self._set_intervals(self._world.clock())
        effects = agent._seat.effects = Effects(self._timers)
        if job.timer:
            self._turn(job.timer, effects.timers)
        if self._agent is None:
            await self._within(agent.start, f"{self._handlers.title}.start")
            self._agent = agent
            self._world.call_before(self.next_due)
        return agent, effects

    async def _call(self, agent: Agent, job: Job, effects: Effects) -> None:
        if job.attribute:
            method = getattr(agent, job.attribute)
            if job.command is not None:
                kwargs = job.args[0]
                result = await self._within(lambda: method(**kwargs), job.title)
                result = msgspec.json.decode(msgspec.json.encode(result))
                effects.answer = Answer(job.command, CommandStatus.SUCCEEDED, result)
            elif job.timer:
                await self._within(method, job.title)
            else:
                for arg in await self._new_ones(job):
                    await self._within(lambda arg=arg: method(arg), job.title)  # type: ignore[misc]  # mypy cannot infer the default's type
        agent._seat.effects = None
        effects.state = changed(agent, self._handlers, effects.timers, self._stored)

    async def _within(self, call: Callable[[], Awaitable[Any]], title: str) -> Any:
        limit = asyncio.timeout(self._rules.handler_timeout)
        try:
            async with limit:
                return await call()
        except TimeoutError:
            if limit.expired():
                raise TimeoutError(f"not done within {self._rules.handler_timeout:g} s") from None
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise RuntimeError(f"{title} was cancelled from within") from None

    async def _new_ones(self, job: Job) -> Sequence[Any]:
        """The arguments whose readings are not stored yet: what came a second time causes nothing."""
        ids = [reading.message_id for reading in job.readings if reading.message_id is not None]
        if not ids:
            return job.args
        known = await _patiently(lambda: self._world.known(job.stream, ids))
        fresh = []
        for arg, reading in zip(job.args, job.readings, strict=True):
            if reading.message_id is None or reading.message_id not in known:
                fresh.append(arg)
            if reading.message_id is not None:
                known.add(reading.message_id)
        return fresh

    async def _commit(self, job: Job, effects: Effects) -> None:
        job.handed_over = True
        self.committing = True
        try:
            await self._world.commit(job, effects, self._class.stored_as())
        except StorageUnavailableError:
            self._reset(job)  # its message comes again, and must find the agent as it is stored
            raise
        except Exception as error:
            log.exception("what an agent did cannot be stored", handler=job.title, problem=str(error))
            self._reset(job)
            return
        finally:
            self.committing = False
        if effects.state is not None:
            self._stored = effects.state
        self._timers = effects.timers
        self._world.call_before(self.next_due)

    def _reset(self, job: Job) -> None:
        """Forget everything since the last commit."""
        self._put_off(job)
        if self._agent is not None:
            self._agent._seat.effects = None
            self._agent = None

    def _put_off(self, job: Job) -> None:
        # A timer whose call came to nothing has been called all the same.
        if job.timer and self._loaded and job.timer in self._timers:
            self._turn(job.timer, self._timers)
            self._world.call_before(self.next_due)

    # ------------------------------------------------------------------ timers

    def _set_intervals(self, now: float) -> None:
        handlers = self._handlers
        # Timers of methods that the class has no more are let go of.
        self._timers = {name: due for name, due in self._timers.items() if name in handlers.timers}
        for name, interval in handlers.every.items():
            self._timers.setdefault(name, now + interval)

    def _turn(self, name: str, timers: dict[str, float]) -> None:
        """A timer is being called: it is over, or set for the next time."""
        now = self._world.clock()
        interval = self._handlers.every.get(name)
        if interval is None:
            timers.pop(name, None)
            return
        due = timers.get(name, now)
        timers[name] = due + interval if due + interval > now else now + interval


def _said(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


async def _patiently(read: Callable[[], Awaitable[T]]) -> T:
    """Read, however long the database is away: nothing could be committed meanwhile."""
    while True:
        try:
            return await read()
        except StorageUnavailableError:
            await asyncio.sleep(RETRY_AFTER)
