"""A device's unfinished commands, from the moment they are stored to their last status."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol, TypeVar, final

import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.agents.services import Services
from bridge.commands import PREDECESSORS, Command, CommandResponse, CommandStatus
from bridge.errors import RefusedError
from bridge.messages import Message
from bridge.receipts import Outcome, Receipt
from bridge.storage import commands as stored

log = structlog.get_logger(__name__)

MAX_OPEN: Final = 1_000
"""Unfinished commands of one device; further ones are refused."""

LISTENING: Final = "device_listening"
"""Why a command is sent: the device is there."""

Accepted = tuple[Command, bool]
T = TypeVar("T")

Staged = tuple[Callable[[AsyncConnection], Awaitable[Accepted]], Callable[[Accepted], None]]


class Host(Protocol):
    """The cell that a device lives in."""

    def call_before(self, when: float) -> None:
        """See to it that the device looks at what is due at `when` (Unix seconds) at the latest."""

    def soon(self, callback: Callable[[], None]) -> None:
        """Call from the device's own coroutine."""


class Addressee(Protocol):
    """The device that the commands are for."""

    id: str

    @property
    def listening(self) -> bool:
        """Whether it can be sent something now."""

    def command_ended(self, command: Command) -> None:
        """One of its commands has its last status."""


@final
class CommandBook:
    """The unfinished commands of one device, oldest first.

    The database row is the truth: a status counts when its guarded UPDATE is committed, and only then is it published
    and acted upon. What is kept here is what the agent has to act on; all changes to a command go through this
    book, so the guard in the database finds nothing to stop unless something here is wrong.
    """

    __slots__ = ("_device", "_host", "_services", "open")

    def __init__(self, device: Addressee, services: Services, host: Host) -> None:
        self._device = device
        self._services = services
        self._host = host
        self.open: dict[str, Command] = {}

    # ------------------------------------------------------------------ from the operator

    def accept(
        self,
        command: Command,
        *,
        cause: str,
        receipt: Receipt | None = None,
        done: asyncio.Future[Accepted] | None = None,
    ) -> None:
        """Store a new command, then answer: the receipt is settled and `done` resolved after the commit, with the
        stored command and whether it is new. The same idempotency key gives the same command.

        Raises RefusedError when the device has too many unfinished commands.
        """
        if len(self.open) >= MAX_OPEN:
            raise RefusedError("too_many_commands", f"{self._device.id} has {MAX_OPEN} unfinished commands")

        at_once = self._device.listening
        now = self._services.clock()

        async def insert(connection: AsyncConnection) -> Accepted:
            accepted = await stored.insert_command(connection, command, cause)
            if at_once and accepted[1]:
                # Both steps in one commit: it is what the operator waits for.
                await stored.advance_command(
                    connection,
                    command.command_id,
                    expected=PREDECESSORS[CommandStatus.SENT],
                    status=CommandStatus.SENT,
                    at=now,
                    cause=LISTENING,
                )
            return accepted

        def inserted(accepted: Accepted) -> None:
            command, created = accepted
            if created:
                self.open[command.command_id] = command
                self._host.call_before(command.expires_at)
                self._announce(command, cause)
                if at_once:
                    command.status = CommandStatus.SENT
                    command.updated_at = now
                    self._announce(command, LISTENING)
                    self._publish_request(command)
                elif self._device.listening:
                    self._send(command)
            if done is not None and not done.done():
                done.set_result(accepted)

        def failed(error: BaseException) -> None:
            if done is not None and not done.done():
                done.set_exception(error)

        self._then(self._services.writer.submit(insert, receipt), inserted, failed)

    def stage(self, command: Command, cause: str) -> Staged:
        """A new command that is stored in somebody else's transaction: the change, and what to call with its result
        after the commit.

        Raises RefusedError when the device has too many unfinished commands.
        """
        if len(self.open) >= MAX_OPEN:
            raise RefusedError("too_many_commands", f"{self._device.id} has {MAX_OPEN} unfinished commands")

        async def insert(connection: AsyncConnection) -> Accepted:
            return await stored.insert_command(connection, command, cause)

        def inserted(_accepted: Accepted) -> None:
            self.open[command.command_id] = command
            self._host.call_before(command.expires_at)
            self._announce(command, cause)
            if self._device.listening:
                self._send(command)

        return insert, inserted

    def restore(self, command: Command) -> None:
        """Take up an unfinished command that was stored before the bridge was restarted."""
        self.open[command.command_id] = command
        self._host.call_before(command.expires_at)

    def cancel(self, command_id: str, cause: str) -> bool:
        """Cancel an unfinished command; False if there is none with this id."""
        command = self.open.get(command_id)
        if command is None:
            return False
        self._advance(command, CommandStatus.CANCELLED, cause)
        return True

    # ------------------------------------------------------------------ to the device

    def send_waiting(self, now: float) -> None:
        """The device is there: send, oldest first, what it has not acknowledged yet."""
        for command in list(self.open.values()):
            if command.expires_at <= now:
                continue
            if command.status is CommandStatus.QUEUED:
                self._send(command)
            elif command.status is CommandStatus.SENT:
                self._publish_request(command)

    def _send(self, command: Command) -> None:
        self._advance(command, CommandStatus.SENT, LISTENING, then=partial(self._publish_request, command))

    def _publish_request(self, command: Command) -> None:
        if command.expires_at <= self._services.clock():
            return
        request = {
            "id": command.command_id,
            "name": command.name,
            "args": command.args,
            "expires_at": command.expires_at,
        }
        self._services.publish(
            self._services.topics.of(self._device.id, "command/request"),
            msgspec.json.encode(request),
            qos=1,
            live_only=True,
            expires_at=command.expires_at,
            on_ack=lambda: self._host.soon(partial(self._delivered, command)),
        )

    # ------------------------------------------------------------------ from the device

    def _delivered(self, command: Command) -> None:
        if command.may_become(CommandStatus.DELIVERED):
            self._advance(command, CommandStatus.DELIVERED, "puback")

    def answer(self, response: CommandResponse, message: Message) -> None:
        """Take a device's response. A late or second one is recorded with the command and changes nothing; one that
        names no command of this device is refused."""
        command = self.open.get(response.id)
        if command is not None and command.may_become(response.status):
            self._advance(
                command,
                response.status,
                "response",
                receipt=message.receipt,
                result=response.result,
                error=response.error,
            )
            return
        services = self._services
        device_id = self._device.id

        async def record(connection: AsyncConnection) -> bool:
            return await stored.record_late_response(connection, device_id, response, message.received_at)

        def recorded(known: bool) -> None:
            if known:
                message.receipt.settle(Outcome.COMMITTED)
            else:
                address = message.address
                text = f"{device_id} was sent no command with id {response.id[:64]!r}"
                services.refuse(
                    address.topic,
                    message.payload,
                    "unknown_command",
                    text,
                    message.receipt,
                    device_id=device_id,
                    kind=address.kind,
                )

        def failed(_error: BaseException) -> None:
            message.receipt.settle(Outcome.RETRY)

        self._then(services.writer.submit(record), recorded, failed)

    # ------------------------------------------------------------------ time

    @property
    def next_deadline(self) -> float:
        """The earliest deadline of an unfinished command; infinity if there is none."""
        return min(
            (command.expires_at for command in self.open.values() if not command.status.final),
            default=float("inf"),
        )

    def expire(self, now: float) -> None:
        """End what is past its deadline."""
        for command in list(self.open.values()):
            if command.expires_at <= now and not command.status.final:
                self._advance(command, CommandStatus.EXPIRED, "deadline")

    # ------------------------------------------------------------------ one change

    def _advance(
        self,
        command: Command,
        status: CommandStatus,
        cause: str,
        *,
        receipt: Receipt | None = None,
        result: Any = None,
        error: str | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Store a change of status; once it is committed, publish it and call `then`."""
        now = self._services.clock()
        # From here on the book goes by the new status; the database decides whether it becomes one.
        command.status = status
        command.updated_at = now
        command.result = result
        command.error = error

        async def update(connection: AsyncConnection) -> bool:
            return await stored.advance_command(
                connection,
                command.command_id,
                expected=PREDECESSORS[status],
                status=status,
                at=now,
                cause=cause,
                result=result,
                error=error,
            )

        def updated(changed: bool) -> None:
            if status.final:
                self.open.pop(command.command_id, None)
            if not changed:
                log.warning("command was changed elsewhere", command=command.command_id, status=status.value)
                return
            self._announce(command, cause, status, now)
            if status.final:
                self._device.command_ended(command)
            if then is not None:
                then()

        def failed(problem: BaseException) -> None:
            log.error(
                "command status could not be stored",
                command=command.command_id,
                status=status.value,
                problem=str(problem),
            )

        self._then(self._services.writer.submit(update, receipt), updated, failed)

    def _announce(
        self, command: Command, cause: str, status: CommandStatus | None = None, at: float | None = None
    ) -> None:
        status = status or command.status
        body: dict[str, Any] = {
            "id": command.command_id,
            "key": command.key,
            "name": command.name,
            "status": status.value,
            "at": at or command.updated_at,
            "cause": cause,
        }
        if status is CommandStatus.SUCCEEDED:
            body["result"] = command.result
        elif status is CommandStatus.FAILED:
            body["error"] = command.error
        self._services.census.commands[status.value] += 1
        self._services.publish_json(self._device.id, "command/status", body, qos=1)
        self._services.command_changed(command.command_id)

    def _then(
        self,
        future: asyncio.Future[T],
        succeeded: Callable[[T], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Have the device's coroutine go on once the writer has committed."""

        def committed(future: asyncio.Future[T]) -> None:
            if future.cancelled():
                return  # the writer has stopped: nothing was promised
            problem = future.exception()
            if problem is not None:
                failed(problem)
            else:
                self._host.soon(partial(succeeded, future.result()))

        future.add_done_callback(committed)
