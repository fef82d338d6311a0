"""Where one device's agent lives: its mailbox and its coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Literal, final

import structlog

from bridge.agents.device import Device
from bridge.agents.logic import Logic
from bridge.agents.services import Services
from bridge.agents.standin import STORED, record
from bridge.agents.waits import Wait
from bridge.errors import RefusedError, StorageError, StorageUnavailableError
from bridge.messages import Message
from bridge.receipts import Outcome
from bridge.storage.devices import DeviceSnapshot

log = structlog.get_logger(__name__)

BUDGET: Final = 256
"""Messages that one agent may handle before the loop is given to the others."""
LOAD_RETRY: Final = 1.0
"""Seconds between two tries to load a device's state while the database is away."""
LOAD_WITHIN: Final = 0.5
"""Seconds that a device's messages wait for its state while the database is known to be away."""

Control = Callable[[Device], None]


@final
class Cell:
    """One device's mailbox and coroutine.

    Control (links, timers, what became of a stored change) goes before data (messages), and one item is handled at a
    time. A cell that has nothing to do first keeps its coroutine waiting (awake), and after `sleep_after` ends it
    (asleep). When nothing of it would be lost then, the cell is given up for the bare state (see `Sleepers`).

    What is wrong with one device's messages, or raised while they are handled, concerns this device alone: the message
    becomes a dead letter, no other device notices. Device logic has a task of its own (see `logic.Logic`), which this
    coroutine does not wait for.
    """

    __slots__ = (
        "_control", "_data", "_device", "_give_up", "_next_tick", "_services", "_task", "_used_at",
        "_waker", "device_id",
    )  # fmt: skip

    def __init__(
        self,
        device_id: str,
        services: Services,
        give_up: Callable[[Cell, DeviceSnapshot | None], None],
        snapshot: DeviceSnapshot | None = None,
    ) -> None:
        """`give_up` is called when the device's state is all that need be kept, or nothing is. Without a `snapshot`
        the state is loaded when there is something to do."""
        self.device_id = device_id
        self._services = services
        self._give_up = give_up
        self._device: Device | None = None
        # Lists that are swapped out whole: an empty one is a tenth of an empty deque, and ten thousand cells have two.
        self._control: list[Control] = []
        self._data: list[Message] = []
        self._task: asyncio.Task[None] | None = None
        self._waker: asyncio.Future[None] | None = None
        self._used_at = services.clock()
        # Monotonic: when the wheel will call at the earliest; infinity while it is not going to.
        self._next_tick = float("inf")
        self._tick_after(services.rules.sleep_after)
        if snapshot is not None:
            self._device = Device(device_id, snapshot, services, self)

    # ------------------------------------------------------------------ from outside

    def post(self, messages: Sequence[Message]) -> None:
        """Hand messages to the agent. At the mailbox limit QoS 0 is dropped and counted; QoS 1 and 2 are bounded by
        the receive windows of the connections they come from, which stop reading instead."""
        data = self._data
        if len(data) + len(messages) <= self._services.rules.mailbox_limit:
            data += messages
        else:
            self._post_what_fits(messages)
        waker = self._waker
        if waker is not None or self._task is None:
            self._wake()

    def _post_what_fits(self, messages: Sequence[Message]) -> None:
        data = self._data
        for message in messages:
            if len(data) >= self._services.rules.mailbox_limit and message.receipt.qos == 0:
                message.receipt.settle(Outcome.DROPPED, "mailbox_full")
            else:
                data.append(message)

    def tell(self, control: Control) -> None:
        """Have the agent's own coroutine call `control(device)`, before the messages that wait."""
        self._control.append(control)
        self._wake()

    def renew(self) -> None:
        """Forget the device, and load it anew for the next message."""

        def forget(_device: Device) -> None:
            self._device = None

        self.tell(forget)

    def soon(self, callback: Callable[[], None]) -> None:
        """Have the agent's own coroutine call `callback`, before the messages that wait."""
        self.tell(lambda _device: callback())

    @property
    def device(self) -> Device | None:
        """The device, once its state is loaded."""
        return self._device

    @property
    def awake(self) -> bool:
        """Whether a coroutine is there."""
        return self._task is not None

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being handled."""
        here = not self._data and not self._control and (self._task is None or self._waker is not None)
        return here and (self._logic is None or self._logic.idle)

    def wait(self) -> Wait | None:
        """What the agent is waiting for; None while it has nothing to do."""
        data, logic = self._data, self._logic
        if logic is not None and logic.doing:
            reason: Literal["commit", "handler"] = "commit" if logic.committing else "handler"
            return Wait(self.device_id, reason, logic.doing, logic.since, logic.waiting + len(data))
        if not data and not self._control:
            return None
        since = data[0].received_at if data else self._used_at
        return Wait(self.device_id, "state" if self._device is None else "turn", "", since, len(data))

    async def stop(self) -> None:
        """Finish what is in the mailbox and what device logic has to do, then end the coroutine."""
        while self._task is not None:
            if self.idle:
                self._sleep()
            elif self._logic is not None:
                await self._logic.finish()
            await asyncio.sleep(0)

    def abandon(self) -> None:
        """End the coroutine at once. What waits is not acknowledged: the senders still have it."""
        if self._task is not None:
            self._task.cancel()
        if self._logic is not None:
            self._logic.abandon()

    @property
    def _logic(self) -> Logic | None:
        return None if self._device is None else self._device.logic

    # ------------------------------------------------------------------ the coroutine

    def _wake(self) -> None:
        waker = self._waker
        if waker is not None:
            self._waker = None
            if not waker.done():
                if self._services.wakeups.due:
                    self._services.wakeups.look()
                waker.set_result(None)
        elif self._task is None:
            self._task = self._services.loop.create_task(self._run())
            self._services.census.awake += 1

    def _sleep(self) -> None:
        if self._waker is not None:
            self._waker.cancel()

    async def _run(self) -> None:
        task = self._task
        try:
            while True:
                if self._control or self._data:
                    device = self._device or await self._load()
                    self._handle_control(device)
                    self._handle_data(device)
                    if self._data:
                        await asyncio.sleep(0)
                    continue
                self._waker = waker = self._services.loop.create_future()
                try:
                    await waker
                except asyncio.CancelledError:
                    if task is None or task.cancelling():
                        raise
                    break  # `_sleep` has cancelled the future that was waited for, not the task
        except asyncio.CancelledError:
            for message in self._data:
                message.receipt.settle(Outcome.RETRY)
            self._data.clear()
            self._control.clear()
            raise
        finally:
            self._waker = None
            self._task = None
            self._services.census.awake -= 1
            if self._control or self._data:
                self._wake()  # posted between the last look and here

    def _handle_control(self, device: Device) -> None:
        while self._control:
            controls, self._control = self._control, []
            for control in controls:
                try:
                    control(device)
                except Exception:
                    # A fault of the bridge, and it concerns this device alone: the others go on.
                    log.exception("a device could not be told", device=self.device_id)

    def _handle_data(self, device: Device) -> None:
        if not self._data:
            return
        if len(self._data) <= BUDGET:
            messages, self._data = self._data, []
        else:
            messages = self._data[:BUDGET]
            del self._data[:BUDGET]
        self._used_at = messages[-1].received_at
        taken = device.record(messages)
        for message in messages[taken:]:
            try:
                device.handle(message)
            except RefusedError as error:
                self._services.refuse_message(message, error.reason, str(error))
            except Exception as error:
                # A fault of the bridge, and it concerns this device alone: the others go on.
                log.exception("a message could not be handled", device=self.device_id, topic=message.address.topic)
                if message.receipt.outcome is None:
                    self._services.refuse_message(message, "internal_error", f"{type(error).__name__}: {error}")

    async def _load(self) -> Device:
        while True:
            try:
                async with asyncio.timeout(LOAD_WITHIN if self._services.writer.diverting else None):
                    snapshot = await self._services.loader.load(self.device_id)
            except (StorageUnavailableError, TimeoutError):
                self._do_without()
                await self._woken_within(LOAD_RETRY)
            except StorageError:
                log.exception("the device's stored state cannot be read; trying again", device=self.device_id)
                await asyncio.sleep(LOAD_RETRY)
            else:
                self._device = device = Device(self.device_id, snapshot, self._services, self)
                return device

    def _do_without(self) -> None:
        """The device's state cannot be had. What needs none of it goes on: readings and events are stored, uncounted,
        where all devices are alike and there is a spool; operators are told that their wish cannot be stored."""
        stored = self._services.writer.diverting and self._services.all_alike
        overdue = self._services.clock() - self._services.writer.patience
        messages, self._data = self._data, []
        for message in messages:
            kind = message.address.kind
            if stored and kind in STORED and not message.address.replay:
                try:
                    record(message, self._services.writer)
                except RefusedError as error:
                    self._services.refuse_message(message, error.reason, str(error))
            elif not kind.from_device and message.received_at < overdue:
                message.receipt.settle(Outcome.RETRY)
            else:
                self._data.append(message)

    async def _woken_within(self, seconds: float) -> None:
        self._waker = waker = self._services.loop.create_future()
        try:
            await asyncio.wait({waker}, timeout=seconds)
        finally:
            self._waker = None

    # ------------------------------------------------------------------ time

    def call_before(self, when: float) -> None:
        """See to it that `Device.tick` is called at `when` (Unix seconds) at the latest."""
        self._tick_after(when - self._services.clock())

    def _tick_after(self, delay: float) -> None:
        wheel = self._services.wheel
        now = wheel.now()
        if self._next_tick <= now + delay:
            return  # the timer that is set is early enough, even if its time has come and the wheel is not there yet
        self._next_tick = now + delay
        wheel.call_after(delay, self)

    def __call__(self) -> None:
        """The wheel's call. It holds the cell itself: a method of it would be one more object for every timer."""
        if self._services.wheel.now() < self._next_tick:
            return  # an earlier timer has taken its place, and has set the next one
        self._next_tick = float("inf")
        now = self._services.clock()
        rules = self._services.rules
        device = self._device
        delay = rules.sleep_after
        if device is not None:
            due = device.next_check()
            idle_for = now - self._used_at
            if due <= now:
                self.tell(Device.tick)  # and that sets the next timer
            elif self.idle and idle_for >= rules.sleep_after:
                self._sleep()
                if device.forgettable:
                    self._retire(device)
            if due > now:
                delay = min(delay, due - now)
        elif self.idle and now - self._used_at >= rules.sleep_after:
            # Forgotten by `renew`, and nobody has asked for it since. Its coroutine may be trying to load it again.
            if self._task is None:
                self._give_up(self, None)
                return
            self._sleep()
        self._tick_after(delay)

    def _retire(self, device: Device) -> None:
        used_at = self._used_at

        def committed(barrier: asyncio.Future[None]) -> None:
            if barrier.cancelled() or barrier.exception() is not None:
                return  # the writer stops, and so do we
            if self.idle and self._used_at == used_at and device.forgettable and self._next_tick != float("inf"):
                self._next_tick = float("inf")  # whatever timer is left finds nothing to do
                self._give_up(self, device.snapshot())

        # What was handed to the writer must be stored before anybody may read it back, and its answers come to this
        # cell (a command that is stored but not in the book yet).
        self._services.writer.barrier().add_done_callback(committed)
