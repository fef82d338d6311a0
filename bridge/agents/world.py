"""The bridge around one agent: where its state comes from, and how what it does is stored and sent on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Protocol, final

import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.agents.book import CommandBook, Staged
from bridge.agents.effects import Effects, Seat, StoredState
from bridge.agents.host import Host
from bridge.agents.job import Job
from bridge.agents.services import Services
from bridge.agents.twin import DeviceTwin
from bridge.commands import Command, CommandRequest, CommandStatus
from bridge.profiles import Profile
from bridge.readings import Reading
from bridge.storage.agents import AgentState
from bridge.storage.deadletters import DeadLetter

log = structlog.get_logger(__name__)

_timers: Final = msgspec.json.Decoder(dict[str, float])


class Subject(Protocol):
    """The device that an agent is for."""

    id: str
    profile: Profile

    @property
    def book(self) -> CommandBook:
        """Its commands."""

    @property
    def twin(self) -> DeviceTwin:
        """Its twin."""

    def new_command(self, request: CommandRequest, now: float) -> Command:
        """The command that `request` asks of it."""

    def recorded(self, stream: str, readings: Sequence[Reading], received_at: float) -> None:
        """A message that device logic has handled is committed with its readings."""


@final
class BridgeWorld:
    """Implements `job.World` with the writer and the broker."""

    __slots__ = ("_device", "_host", "_services")

    def __init__(self, device: Subject, services: Services, host: Host) -> None:
        self._device = device
        self._services = services
        self._host = host

    def clock(self) -> float:
        """The time, in Unix seconds."""
        return self._services.clock()

    def seat(self, timers: frozenset[str]) -> Seat:
        """A place for a new instance."""
        services = self._services
        return Seat(
            self._device.id,
            clock=services.clock,
            topic_of=services.topics.of,
            new_command=self._new_command,
            offload=services.offload,
            timers=timers,
        )

    def _new_command(self, name: str, args: Any, ttl: float | None) -> Command:
        return self._device.new_command(CommandRequest(name, args, ttl=ttl), self._services.clock())

    # ------------------------------------------------------------------ from the database

    async def load(self, state_name: str) -> StoredState | None:
        """The stored state, None if there is none yet."""
        row = await self._services.agent_loader.load((self._device.id, state_name))
        return None if row is None else StoredState(row.version, row.state, _timers.decode(row.timers))

    async def known(self, stream: str, message_ids: list[str]) -> set[str]:
        """Which of these ids are those of stored readings."""
        load = self._services.known_ids.load
        found = await asyncio.gather(*(load((self._device.id, stream, message_id)) for message_id in message_ids))
        return {message_id for message_id, known in zip(message_ids, found, strict=True) if known}

    # ------------------------------------------------------------------ what came of a job

    async def begin(self, command: Command) -> bool:
        """`in_progress` is stored before the agent does anything, so that a crash does not have it done twice."""
        return await self._device.book.begin(command)

    async def commit(self, job: Job, effects: Effects, state_name: str) -> None:
        """Store it all in one transaction; then settle, send and publish."""
        services, device, message = self._services, self._device, job.message
        changes: list[Staged[Any]] = [device.book.stage(command, "agent") for command in effects.commands]
        changes += [device.twin.stage(part, patch) for part, patch in effects.patches]
        if (answer := effects.answer) is not None:
            changes.append(device.book.stage_end(answer.command, answer.status, answer.result, answer.error))
        if message is None and not changes and effects.state is None:
            self._publish(effects)
            return
        rows: list[tuple[str, str, float, float, str | None, str]] = []
        letter = None
        if message is not None:
            at = message.received_at
            rows = [(device.id, job.stream, r.ts, at, r.message_id, r.payload) for r in job.readings]
            letter = DeadLetter(at, message.address.topic, device.id, "", "", message.payload)

        async def run(connection: AsyncConnection) -> list[Any]:
            return [await change(connection) for change, _ in changes]

        results = await services.writer.add_together(
            rows,
            run if changes else None,
            None if effects.state is None else _row(device.id, state_name, effects.state),
            None if message is None else message.receipt,
            letter,
        )
        if message is not None:
            device.recorded(job.stream, job.readings, message.received_at)
        for (_, committed), result in zip(changes, results or (), strict=True):
            committed(result)
        self._publish(effects)

    def _publish(self, effects: Effects) -> None:
        for publication in effects.publications:
            self._services.publish(
                publication.topic, publication.payload, qos=publication.qos, retain=publication.retain
            )

    def refuse(self, job: Job, reason: str, text: str) -> None:
        """Nothing comes of `job`: its message becomes a dead letter, its command fails."""
        if job.message is not None:
            self._services.refuse_message(job.message, reason, text)
        elif job.command is not None:
            self._device.book.report(job.command.command_id, CommandStatus.FAILED, error=text)
        elif reason != "agent_error":  # that one is in the log already
            log.warning(
                "an agent was not called", handler=job.title, device=self._device.id, reason=reason, detail=text
            )

    def failed(self, _error: BaseException) -> None:
        """The agent has raised and is built anew."""
        self._services.census.restarts += 1

    def call_before(self, when: float) -> None:
        """See to it that `Logic.tick` is called at `when` (Unix seconds) at the latest."""
        if when < float("inf"):
            self._host.call_before(when)


def _row(device_id: str, state_name: str, state: StoredState) -> AgentState:
    timers = msgspec.json.encode(state.timers).decode()
    return AgentState(device_id, state_name, state.version, state.state, timers, state.due)
