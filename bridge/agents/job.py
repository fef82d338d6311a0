"""One thing that a device's agent is called for, and what is around the agent meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, final

from bridge.agents.effects import Effects, Seat, StoredState
from bridge.commands import Command
from bridge.messages import Message
from bridge.readings import Reading


@final
class Job:
    """One thing that the agent is called for."""

    __slots__ = ("args", "attribute", "command", "handed_over", "message", "readings", "stream", "timer", "title")

    def __init__(
        self,
        title: str,
        attribute: str,
        args: Sequence[Any] = (),
        *,
        message: Message | None = None,
        stream: str = "",
        readings: Sequence[Reading] = (),
        command: Command | None = None,
        timer: str = "",
    ) -> None:
        """`attribute` is called once for each of `args`, or without an argument for a timer. `readings` belong to
        `args`, one each; `command` is what the agent is to carry out, with its parameters as the only one of `args`."""
        self.title = title
        self.attribute = attribute
        self.args = args
        self.message = message
        self.stream = stream
        self.readings = readings
        self.command = command
        self.timer = timer
        self.handed_over = False
        """Whether its message is the writer's to settle."""


class World(Protocol):
    """What is around an agent: the bridge, or in its place a test."""

    def clock(self) -> float:
        """The time, in Unix seconds."""

    def seat(self, timers: frozenset[str]) -> Seat:
        """A place for a new instance."""

    async def load(self, state_name: str) -> StoredState | None:
        """The stored state, None if there is none yet. Raises StorageUnavailableError."""

    async def known(self, stream: str, message_ids: list[str]) -> set[str]:
        """Which of these ids are those of stored readings. Raises StorageUnavailableError."""

    async def begin(self, command: Command) -> bool:
        """The agent is about to carry out `command`; False if it must not any more."""

    async def commit(self, job: Job, effects: Effects, state_name: str) -> None:
        """Store what `job` brought and what it caused, together, then see it on its way and settle the message.

        Raises StorageUnavailableError if the bridge stops before it is stored, anything else if it is refused for
        good; the message is taken care of in either case."""

    def refuse(self, job: Job, reason: str, text: str) -> None:
        """Nothing comes of `job`: its message becomes a dead letter, its command fails."""

    def failed(self, error: BaseException) -> None:
        """The agent has raised and is built anew."""

    def call_before(self, when: float) -> None:
        """See to it that `Logic.tick` is called at `when` (Unix seconds) at the latest."""
