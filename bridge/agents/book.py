"""A device's unfinished commands, from the moment they are stored to their last status."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol, TypeVar, final

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.agents.announcements import announce
from bridge.agents.dispatch import call_off, send
from bridge.agents.doubts import Doubts
from bridge.agents.host import Host
from bridge.agents.services import Services
from bridge.commands import PREDECESSORS, Command, CommandResponse, CommandStatus
from bridge.errors import RefusedError, StorageUnavailableError
from bridge.messages import Message
from bridge.profiles import Profile
from bridge.receipts import Outcome, Receipt
from bridge.storage import audit
from bridge.storage import commands as stored

log = structlog.get_logger(__name__)

MAX_OPEN: Final = 1_000
"""Unfinished commands of one device; further ones are refused."""

AGAIN: Final = 1.0
"""Seconds until what is due is looked at again after the database has refused to store a change."""

LISTENING: Final = "device_listening"
"""Why a command is sent: the device is there."""

Accepted = tuple[Command, bool]
T = TypeVar("T")

Staged = tuple[Callable[[AsyncConnection], Awaitable[T]], Callable[[T], None]]
"""Something that is stored in somebody else's transaction: the change, and what to call with its result after the
commit."""


class Addressee(Protocol):
    """The device that the commands are for."""

    id: str
    profile: Profile

    @property
    def listening(self) -> bool:
        """Whether it can be sent something now."""

    def command_ended(self, command: Command) -> None:
        """One of its commands has its last status."""


class Executor(Protocol):
    """Who carries out some commands in the device's place: its agent."""

    def takes(self, name: str) -> bool:
        """Whether commands of this name are its own; the device is not sent them."""

    def execute(self, command: Command) -> None:
        """Carry out a command, which is `sent` now: `CommandBook.begin` it, then `stage_end` or `report` its end.
        Called again, up to the command's attempts, if the bridge was restarted or `retry_after` went by before it was
        begun."""


@final
class CommandBook:
    """The unfinished commands of one device, oldest first.

    The database row is the truth: a status counts when its guarded UPDATE is committed, and only then is it published
    and acted upon. What is kept here is what the agent has to act on; all changes to a command go through this
    book, so the guard in the database finds nothing to stop unless something here is wrong.
    """

    __slots__ = ("_coming", "_device", "_doubts", "_host", "_sending", "_services", "executor", "open")

    def __init__(self, device: Addressee, services: Services, host: Host) -> None:
        self._device = device
        self._services = services
        self._host = host
        self.open: dict[str, Command] = {}
        self._coming = 0
        """New commands that wait for their commit."""
        self._doubts: Doubts | None = None
        self._sending: set[str] = set()
        """The commands of which an attempt waits for its commit: there is no other one until then."""
        self.executor: Executor | None = None

    # ------------------------------------------------------------------ from the operator

    def accept(
        self,
        command: Command,
        *,
        cause: str,
        message: Message | None = None,
        done: asyncio.Future[Accepted] | None = None,
    ) -> None:
        """Store a new command, then answer: `message`'s receipt is settled and `done` resolved after the commit, with
        the stored command and whether it is new. The same idempotency key gives the same command; if that one asks
        for something else, the new one is refused (`key_conflict`).

        If the database does not answer in time, that is told as well (StorageUnavailableError), and the command goes
        its way all the same should it turn out to be stored: who asks again with its key finds it on its way.

        Raises RefusedError when the device has too many unfinished commands.
        """
        self._check_room(command)
        self._coming += 1
        at_once = self._receiver(command)
        now = self._services.clock()

        sender = None if message is None else message.address.sender
        keep = self._services.audit_lines

        async def insert(connection: AsyncConnection) -> Accepted:
            # Both steps in one commit: it is what the operator waits for.
            first = None if at_once is None else stored.FirstAttempt(now, at_once)
            stored_command, created = await stored.insert_command(connection, command, cause, first)
            if created and sender is not None:
                line = audit.by_mqtt(
                    now, sender, "command", command.device_id, f"{command.name}, command {command.command_id}"
                )
                await audit.record(connection, line, keep)
            return stored_command, created

        def created_now() -> None:
            self.open[command.command_id] = command
            self._host.call_before(command.expires_at)
            announce(self._services, command, cause)
            if at_once is not None:
                command.status = CommandStatus.SENT
                command.updated_at = now
                command.attempts = 1
                announce(self._services, command, at_once)
                self._hand_over(command)
            elif (receiver := self._receiver(command)) is not None:
                self._send(command, receiver)  # it has come meanwhile

        def inserted(accepted: Accepted) -> None:
            self._coming -= 1
            stored_command, created = accepted
            if created:
                created_now()
            elif not stored_command.is_asked_by(command):
                failed(self._conflict(command, stored_command, message))
            if done is not None and not done.done():
                done.set_result(accepted)

        def failed(error: BaseException) -> None:
            if done is not None and not done.done():
                done.set_exception(error)

        def not_inserted(error: BaseException) -> None:
            self._coming -= 1
            if isinstance(error, StorageUnavailableError):
                self._doubts = self._doubts or Doubts(self._services, self._host.soon)
                self._doubts.add(command.command_id, created_now)
            failed(error)

        receipt = None if message is None else message.receipt
        self._then(self._services.writer.submit(insert, receipt), inserted, not_inserted)

    def _check_room(self, command: Command) -> None:
        doubtful = 0 if self._doubts is None else len(self._doubts)
        full = len(self.open) + self._coming + doubtful >= MAX_OPEN
        # Whoever repeats what is under way takes no room.
        if full and all(known.key != command.key for known in self.open.values()):
            raise RefusedError("too_many_commands", f"{self._device.id} has {MAX_OPEN} unfinished commands")

    def _conflict(self, command: Command, stored_command: Command, message: Message | None) -> RefusedError:
        error = RefusedError(
            "key_conflict",
            f"id {command.key[:64]!r} is that of another command, {stored_command.name!r}"
            f" ({stored_command.command_id}): a new command needs an id of its own",
        )
        if message is not None:
            # Acknowledged it is already, with its batch; the letter is what its sender's mistake leaves behind.
            topic, kind = message.address.topic, message.address.kind
            self._services.refuse(
                topic, message.payload, error.reason, str(error), None, device_id=self._device.id, kind=kind
            )
        return error

    def stage(self, command: Command, cause: str) -> Staged[Accepted]:
        """Store a new command together with what caused it.

        Raises RefusedError when the device has too many unfinished commands.
        """
        self._check_room(command)

        async def insert(connection: AsyncConnection) -> Accepted:
            return await stored.insert_command(connection, command, cause)

        def inserted(_accepted: Accepted) -> None:
            self.open[command.command_id] = command
            self._host.call_before(command.expires_at)
            announce(self._services, command, cause)
            if (receiver := self._receiver(command)) is not None:
                self._send(command, receiver)

        return insert, inserted

    def restore(self, command: Command) -> None:
        """Take up an unfinished command that was stored before the bridge was restarted."""
        self.open[command.command_id] = command
        self._host.call_before(command.expires_at)
        if command.may_become(CommandStatus.SENT) and self._is_ours(command):
            self._send(command, "restart")

    def cancel(self, command_id: str, cause: str, done: asyncio.Future[bool] | None = None) -> None:
        """Cancel an unfinished command; `done` says whether there was one with this id, once it is committed.

        A device that has been sent the command and is there is told (`command/cancel`). Whether it stops is its own
        affair: what it answers is recorded and changes nothing.
        """
        command = self.open.get(command_id)
        if command is None or not command.may_become(CommandStatus.CANCELLED):
            _resolve(done, False)
            return
        told = command.attempts > 0 and not self._is_ours(command)

        def cancelled() -> None:
            if told:
                call_off(self._services, command)
            _resolve(done, True)

        def failed(error: BaseException) -> None:
            if done is not None and not done.done():
                done.set_exception(error)

        self._advance(command, CommandStatus.CANCELLED, cause, then=cancelled, failed=failed)

    def removed(self) -> None:
        """The device is deleted, and with it its commands: they are over, for whoever counts on their end."""
        news = self._services.rollout_news
        for command in self.open.values():
            if news is not None and command.rollout_id is not None and not command.status.final:
                news(command.rollout_id, command.command_id, CommandStatus.CANCELLED)

    # ------------------------------------------------------------------ to the device

    def send_waiting(self, now: float) -> None:
        """The device is there: send, oldest first, what it has not acknowledged yet."""
        for command in list(self.open.values()):
            if command.expires_at > now and not self._is_ours(command):
                cause = LISTENING if command.status is CommandStatus.QUEUED else "reconnect"
                self._send(command, cause)

    def _is_ours(self, command: Command) -> bool:
        return self.executor is not None and self.executor.takes(command.name)

    def _receiver(self, command: Command) -> str | None:
        """Who would take the command now: the cause of its being sent, None if nobody is there."""
        if self._is_ours(command):
            return "agent"
        return LISTENING if self._device.listening else None

    def _send(self, command: Command, cause: str) -> None:
        """Make another attempt, if there may be one."""
        if command.command_id in self._sending or not command.may_become(CommandStatus.SENT):
            return
        self._sending.add(command.command_id)
        self._advance(command, CommandStatus.SENT, cause, then=partial(self._hand_over, command))

    def _hand_over(self, command: Command) -> None:
        """The attempt is committed: let the receiver have the command, unless it has ended meanwhile."""
        if command.status.final or command.expires_at <= self._services.clock():
            return
        if (again := command.retry_due()) < command.expires_at:
            self._host.call_before(again)
        if self._is_ours(command) and self.executor is not None:
            self.executor.execute(command)
            return
        acknowledged = partial(self._host.soon, partial(self._delivered, command))
        try:
            answered = send(self._services, self._device.profile, command, acknowledged)
        except RefusedError as error:
            self._advance(command, CommandStatus.FAILED, "mapping", error=str(error))
            return
        if not answered:
            self._advance(command, CommandStatus.SUCCEEDED, "sent")

    # ------------------------------------------------------------------ from the device

    def _delivered(self, command: Command) -> None:
        if command.may_become(CommandStatus.DELIVERED):
            self._advance(command, CommandStatus.DELIVERED, "puback")

    def begin(self, command: Command) -> asyncio.Future[bool]:
        """The executor is about to carry out a command. True once it is stored as `in_progress`, which is never carried
        out again: a crash from here on leaves it to its deadline. False if it has been begun before, or has ended."""
        begun: asyncio.Future[bool] = self._services.loop.create_future()

        def failed(error: BaseException) -> None:
            if not begun.done():
                begun.set_exception(error)

        if command.may_become(CommandStatus.IN_PROGRESS) and command.expires_at > self._services.clock():
            begin = partial(_resolve, begun, True)
            self._advance(command, CommandStatus.IN_PROGRESS, "agent", then=begin, failed=failed)
        else:
            begun.set_result(False)
        return begun

    def stage_end(self, command: Command, status: CommandStatus, result: Any, error: str | None) -> Staged[bool]:
        """Store the end of a command that the executor has carried out together with what it did for it."""
        now = self._services.clock()

        async def update(connection: AsyncConnection) -> bool:
            return await _store(connection, command, status, now, "agent", result, error)

        def updated(changed: bool) -> None:
            if not changed:
                log.warning("a command was carried out, but too late", command=command.command_id)
                return
            command.status, command.updated_at = status, now
            command.result, command.error = result, error
            self._settled(command, status, "agent", now)

        return update, updated

    def report(self, command_id: str, status: CommandStatus, result: Any = None, error: str | None = None) -> None:
        """What the executor has to say of a command; once it has ended, nothing."""
        command = self.open.get(command_id)
        if command is not None and command.may_become(status):
            self._advance(command, status, "agent", result=result, error=error)

    def answer_oldest(self, result: Any, error: str | None, message: Message) -> bool:
        """Take the answer of a device that does not say what it answers: to the oldest request that was sent. False if
        there is none."""
        for command in self.open.values():
            request = self._device.profile.request(command.name)
            status = CommandStatus.SUCCEEDED if error is None else CommandStatus.FAILED
            if request is not None and request.answered and command.may_become(status):
                self._advance(command, status, "response", receipt=message.receipt, result=result, error=error)
                return True
        return False

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

        self._then(services.writer.submit(record, patient=True), recorded, failed)

    # ------------------------------------------------------------------ time

    @property
    def next_due(self) -> float:
        """When `tick` is wanted next, for a deadline or another attempt, in Unix seconds; infinity if for neither."""
        due = float("inf")
        for command in self.open.values():
            if command.status.final:
                continue
            due = min(due, command.expires_at)
            if command.command_id not in self._sending and self._receiver(command) is not None:
                due = min(due, command.retry_due())
        return due

    def tick(self, now: float) -> None:
        """End what is past its deadline; send again what nobody has acknowledged for too long."""
        for command in list(self.open.values()):
            if command.status.final:
                continue
            if command.expires_at <= now:
                self._advance(command, CommandStatus.EXPIRED, "deadline")
            elif command.retry_due() <= now and self._receiver(command) is not None:
                self._send(command, "retry")

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
        failed: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Store a change of status; once it is committed, publish it and call `then`; `failed` if it cannot be."""
        now = self._services.clock()
        # From here on the book goes by the new status; the database decides whether it becomes one.
        before = command.status
        command.status = status
        command.updated_at = now
        command.result = result
        command.error = error
        if status is CommandStatus.SENT:
            command.attempts += 1

        async def update(connection: AsyncConnection) -> bool:
            return await _store(connection, command, status, now, cause, result, error)

        def updated(changed: bool) -> None:
            if status is CommandStatus.SENT:
                self._sending.discard(command.command_id)
            if not changed:
                if status.final:
                    self.open.pop(command.command_id, None)
                log.warning("command was changed elsewhere", command=command.command_id, status=status.value)
                if failed is not None:
                    failed(RefusedError("changed_elsewhere", f"command {command.command_id} was changed elsewhere"))
                return
            self._settled(command, status, cause, now)
            if then is not None:
                then()

        def not_stored(problem: BaseException) -> None:
            if status is CommandStatus.SENT:
                self._sending.discard(command.command_id)
                command.attempts -= 1
            if command.status is status:
                command.status = before  # so that what asked for the change can ask again
                self._host.call_before(max(self.next_due, self._services.clock() + AGAIN))
            log.error(
                "command status could not be stored",
                command=command.command_id,
                status=status.value,
                problem=str(problem),
            )
            if failed is not None:
                failed(problem)

        self._then(self._services.writer.submit(update, receipt, patient=True), updated, not_stored)

    def _settled(self, command: Command, status: CommandStatus, cause: str, at: float) -> None:
        """A change of status is committed."""
        if status.final:
            self.open.pop(command.command_id, None)
        announce(self._services, command, cause, status, at)
        if status.final:
            self._device.command_ended(command)

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


async def _store(
    connection: AsyncConnection,
    command: Command,
    status: CommandStatus,
    at: float,
    cause: str,
    result: Any = None,
    error: str | None = None,
) -> bool:
    return await stored.advance_command(
        connection,
        command.command_id,
        expected=PREDECESSORS[status],
        status=status,
        at=at,
        cause=cause,
        result=result,
        error=error,
    )


def _resolve(done: asyncio.Future[bool] | None, answer: bool) -> None:
    if done is not None and not done.done():
        done.set_result(answer)
