"""What a handler of device logic has done so far, kept back until it is over: all of it happens, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

import msgspec
import structlog

from bridge.agents.offload import Offload
from bridge.commands import Command, CommandStatus
from bridge.twin import Document, Part

MAX_EFFECTS: Final = 1_000
"""Commands, publications and patches of one handler: an endless loop must not fill the memory."""


@final
class Publication(msgspec.Struct, frozen=True):
    """A message to be published once the handler's effects are committed."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


@final
class Answer(msgspec.Struct, frozen=True):
    """The end of a command that the agent has carried out: `status` is succeeded or failed."""

    command: Command
    status: CommandStatus
    result: Any = None
    error: str | None = None


@final
class StoredState(msgspec.Struct, frozen=True):
    """An agent's state as it is stored: the JSON of its State, the version of that class, and for each method that a
    timer will call the time, in Unix seconds."""

    version: int
    state: str
    timers: dict[str, float] = {}

    @property
    def due(self) -> float | None:
        """When its next timer is due."""
        return min(self.timers.values(), default=None)


@final
class Effects:
    """Gathered while one message is handled."""

    __slots__ = ("answer", "commands", "patches", "publications", "state", "timers")

    def __init__(self, timers: dict[str, float]) -> None:
        """`timers` is what is set already."""
        self.commands: list[Command] = []
        self.publications: list[Publication] = []
        self.patches: list[tuple[Part, Document]] = []
        """Merge patches of the twin."""
        self.timers = dict(timers)
        self.answer: Answer | None = None
        self.state: StoredState | None = None
        """The state to be stored; None if it is as it was."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (self.commands or self.patches or self.answer or self.state)

    def check_room(self) -> None:
        """Raises RuntimeError when the handler has done too much."""
        if len(self.commands) + len(self.publications) + len(self.patches) >= MAX_EFFECTS:
            raise RuntimeError(f"more than {MAX_EFFECTS} commands, publications and patches from one message")


@final
class Seat:
    """What an agent sits on: its device, the clock, and the effects of the handler that is running."""

    __slots__ = ("_log", "clock", "device_id", "effects", "new_command", "offload", "timers", "topic_of")

    def __init__(
        self,
        device_id: str,
        *,
        clock: Callable[[], float],
        topic_of: Callable[[str, str], str],
        new_command: Callable[[str, Any, float | None], Command],
        offload: Offload,
        timers: frozenset[str],
    ) -> None:
        """`topic_of(device_id, name)` names a topic of a device; `new_command(name, args, ttl)` makes a command for
        this one and raises RefusedError when it is not acceptable; `timers` are the methods that a timer may call."""
        self.device_id = device_id
        self.clock = clock
        self.topic_of = topic_of
        self.new_command = new_command
        self.offload = offload
        self.timers = timers
        self.effects: Effects | None = None
        self._log: structlog.stdlib.BoundLogger | None = None

    @property
    def log(self) -> structlog.stdlib.BoundLogger:
        """A logger that names the device."""
        if self._log is None:
            self._log = structlog.get_logger("bridge.logic").bind(device=self.device_id)
        return self._log

    @property
    def open_effects(self) -> Effects:
        """The effects of the running handler. Raises RuntimeError when none is running: a task that a handler has
        started and not waited for comes too late."""
        if self.effects is None:
            raise RuntimeError("an agent acts only while one of its handlers is running")
        return self.effects
