"""From a topic to the agent that it is for: the one map of devices, and the bridge's side of the broker's door."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Final, final

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.agents.arrivals import Arrivals
from bridge.agents.book import Accepted
from bridge.agents.cell import Cell, Control
from bridge.agents.device import Device
from bridge.agents.services import Services
from bridge.agents.sleepers import Sleepers
from bridge.agents.waits import Wait
from bridge.commands import Command, CommandRequest
from bridge.errors import RefusedError, StorageError, StorageUnavailableError
from bridge.messages import Link, Message
from bridge.presence import Status
from bridge.receipts import Receipt
from bridge.registry import Admission
from bridge.storage import commands as stored_commands
from bridge.storage import devices as stored_devices
from bridge.storage import presence as stored_presence
from bridge.storage.agents import waiting_for_time
from bridge.storage.devices import DeviceSnapshot
from bridge.twin import Patch, Twin

log = structlog.get_logger(__name__)

FORGOTTEN_TOGETHER: Final = 5_000
"""States of sleeping agents that leave memory at the same time."""
STOPPED_TOGETHER: Final = 100
"""Cells that are stopped at the same time at shutdown."""


@final
class Router:
    """Finds the agent for a device, and makes one for a device that has none yet. Implements `messages.Intake`."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._cells: dict[str, Cell] = {}
        self._arrivals = Arrivals(services.loop, self._arrived)
        self.sleepers: Final = Sleepers()
        self.on_relief: Callable[[], None] | None = None
        services.writer.on_relief = self._relieved

    # ------------------------------------------------------------------ from the broker

    @property
    def congested(self) -> bool:
        """Whether the writer holds as much as it may."""
        return self._services.writer.congested

    def _relieved(self) -> None:
        if self.on_relief is not None:
            self.on_relief()

    def deliver(self, messages: Sequence[Message]) -> None:
        """Hand messages to their device's agent."""
        device_id = messages[0].address.device_id
        cell = self._cells.get(device_id)
        if cell is None:
            cell = self._new_cell(device_id)
        cell.post(messages)

    def refuse(self, topic: str, payload: bytes, reason: str, text: str, receipt: Receipt) -> None:
        """Keep a message that names no possible agent as a dead letter."""
        self._services.refuse(topic, payload, reason, text, receipt)

    def attached(self, device_id: str, link: Link, *, listening: bool) -> None:
        """A connection speaks for a device."""
        self._arrivals.add((device_id, lambda device: device.attached(link, listening=listening), False))

    def detached(self, device_id: str, link: Link, cause: str) -> None:
        """A connection that spoke for a device is gone."""
        self._arrivals.add((device_id, lambda device: device.detached(link, cause), True))

    def _arrived(self, arrival: tuple[str, Control, bool]) -> None:
        device_id, control, leaves = arrival
        cell = self._cells.get(device_id)
        if leaves and (cell is None or (cell.device is None and cell.idle)):
            return  # a device with a connection is in memory: this one was deleted, and is not made anew by its leaving
        (cell or self._new_cell(device_id)).tell(control)

    # ------------------------------------------------------------------ from the operator

    async def send(
        self, device_id: str, request: CommandRequest, cause: str, rollout_id: str | None = None
    ) -> Accepted:
        """Store a command and see it on its way: the stored command, and whether it is new.

        Raises RefusedError when the request is not acceptable, StorageError when it cannot be stored.
        """
        now = self._services.clock()
        done: asyncio.Future[Accepted] = self._services.loop.create_future()

        def accept(device: Device) -> None:
            if done.done():
                return  # whoever asked has been told that it was not possible
            try:
                device.check_admission()
                device.book.accept(device.new_command(request, now, rollout_id), cause=cause, done=done)
            except RefusedError as error:
                if not done.done():
                    done.set_exception(error)

        self.cell(device_id).tell(accept)
        return await done

    async def cancel(self, device_id: str, command_id: str, cause: str) -> bool:
        """Cancel a command of a device; False if it has no unfinished one with this id. Answered after the commit."""
        done: asyncio.Future[bool] = self._services.loop.create_future()
        self.cell(device_id).tell(lambda device: device.book.cancel(command_id, cause, done))
        return await done

    async def desire(self, device_id: str, patch: Patch) -> Twin:
        """Change what a device is asked to be: its twin after the commit.

        Raises RefusedError when the patch is not acceptable (VersionConflictError: it was made for another version),
        StorageError when it cannot be stored.
        """
        done: asyncio.Future[Twin] = self._services.loop.create_future()

        def change(device: Device) -> None:
            try:
                device.check_admission()
                device.twin.desire(patch, done)
            except RefusedError as error:
                done.set_exception(error)

        self.cell(device_id).tell(change)
        return await done

    # ------------------------------------------------------------------ all cells

    def cell(self, device_id: str) -> Cell:
        """The place of a device's agent, made if need be."""
        return self._cells.get(device_id) or self._new_cell(device_id)

    def tell(self, device_id: str, control: Callable[[Device], None]) -> None:
        """Have a device's agent call `control`, if it is there: else it learns of everything when it is loaded."""
        cell = self._cells.get(device_id)
        if cell is not None:
            cell.tell(control)
        else:
            self.sleepers.take(device_id)

    def catch_up(self) -> None:
        """Tell the agents now of all connections that have come and gone."""
        self._arrivals.flush()

    def renew(self, device_id: str) -> None:
        """Have a device that is in memory loaded anew."""
        cell = self._cells.get(device_id)
        if cell is not None:
            cell.renew()
        else:
            self.sleepers.take(device_id)

    def find(self, device_id: str) -> Device | None:
        """The device if its agent is in memory."""
        cell = self._cells.get(device_id)
        return None if cell is None else cell.device

    def activity(self) -> dict[str, int]:
        """How many agents are awake (a coroutine waits), asleep (in memory without one) and cold (only stored)."""
        census = self._services.census
        present = len(self._cells) + len(self.sleepers)
        return {
            "awake": census.awake,
            "asleep": present - census.awake,
            # One whose state is being loaded is not counted as known before that.
            "cold": max(0, census.devices.total() - present),
        }

    def waits(self, longer_than: float, limit: int) -> list[Wait]:
        """What the agents wait for that have waited more than `longer_than` seconds, the longest wait first, at most
        `limit`. Looks at every cell."""
        before = self._services.clock() - longer_than
        found = (cell.wait() for cell in self._cells.values())
        return heapq.nsmallest(
            limit, (wait for wait in found if wait is not None and wait.since <= before), key=attrgetter("since")
        )

    async def start(self) -> None:
        """Take up where the last run ended: unfinished commands, and devices that were online when it did."""
        services = self._services
        services.wheel.start()
        services.wheel.call_after(services.rules.evict_after, self._turn)
        await self._recover_presence()
        for command in await services.writer.submit(_open_commands, patient=True):
            self.cell(command.device_id).tell(_restorer(command))
        names = [agent.stored_as() for agent, _ in services.logic_classes.values()]
        if names:
            now = services.clock()
            for device_id, due in await services.loader.database.read(partial(waiting_for_time, agents=names)):
                # Not all at once: each when its first timer is due.
                services.wheel.call_after(max(0.0, due - now), partial(self._wake_for_timer, device_id))

    async def stop(self, timeout: float) -> None:
        """Handle what is in the mailboxes and hand every changed state to the writer. After `timeout` seconds the
        rest is left unacknowledged."""
        self._services.wheel.stop()
        await self._finish(timeout)
        await self._services.offload.stop()

    async def close(self, timeout: float) -> None:
        """After `stop`, when the broker has closed the last connections: handle those ends as well, and when all is
        committed note that this run ended in order."""
        await self._finish(timeout)
        try:
            async with asyncio.timeout(timeout):
                await self._services.writer.add_change(stored_presence.end)
        except (TimeoutError, StorageError, StorageUnavailableError) as error:
            log.warning("the end of this run is not noted: the next one jumps ahead in its epochs", error=repr(error))

    async def _finish(self, timeout: float) -> None:
        self.catch_up()
        cells = list(self._cells.values())
        try:
            async with asyncio.timeout(timeout):
                for start in range(0, len(cells), STOPPED_TOGETHER):
                    await asyncio.gather(*(cell.stop() for cell in cells[start : start + STOPPED_TOGETHER]))
        except TimeoutError:
            left = [cell for cell in cells if not cell.idle]
            log.warning("agents were not done in time; their messages are not acknowledged", agents=len(left))
            for cell in left:
                cell.abandon()
        for cell in cells:
            if cell.device is not None and not cell.device.forgettable:
                cell.device.save()

    async def _recover_presence(self) -> None:
        """After a crash nobody knows what became of those who were online."""
        services = self._services
        now = services.clock()

        async def recover(connection: AsyncConnection) -> tuple[stored_presence.Beginning, dict[str, int]]:
            beginning = await stored_presence.begin(connection, now)
            return beginning, await stored_devices.count_by_status(connection)

        # Nobody is let in yet, so there is nothing to be in order with; a slow commit of rows would be diverted.
        # Where very many were online it takes longer than a caller may wait.
        beginning, counts = await services.writer.submit(recover, patient=True)
        services.epoch_floor = beginning.floor
        services.census.devices = Counter(counts)
        for device_id, epoch in beginning.forgotten:
            body = {"status": Status.UNKNOWN.value, "cause": "restart", "epoch": epoch, "at": now}
            services.publish_json(device_id, "presence", body, qos=1, retain=True)

    def _wake_for_timer(self, device_id: str) -> None:
        self.cell(device_id).tell(_build_agent)

    def _new_cell(self, device_id: str) -> Cell:
        snapshot = self.sleepers.take(device_id)
        cell = self._cells[device_id] = Cell(device_id, self._services, self._give_up, snapshot)
        return cell

    def _give_up(self, cell: Cell, snapshot: DeviceSnapshot | None) -> None:
        del self._cells[cell.device_id]
        # Of a stranger nothing is kept, stored or not.
        if snapshot is not None and snapshot.admission != Admission.UNKNOWN.value:
            self.sleepers.keep(snapshot)

    def _turn(self) -> None:
        """Some have slept for `evict_after`: they leave memory. (What they were is stored since they fell asleep.)"""
        self.sleepers.turn()
        self._forget_some()
        self._services.wheel.call_after(self._services.rules.evict_after, self._turn)

    def _forget_some(self) -> None:
        # Not all at once: to free a million states takes longer than the event loop may be held up.
        if self.sleepers.forget(FORGOTTEN_TOGETHER) == FORGOTTEN_TOGETHER:
            self._services.wheel.call_after(0.0, self._forget_some)


async def _open_commands(connection: AsyncConnection) -> list[Command]:
    return await stored_commands.open_commands(connection)


def _restorer(command: Command) -> Callable[[Device], None]:
    return lambda device: device.book.restore(command)


def _build_agent(device: Device) -> None:
    if device.logic is not None:
        device.logic.build()
