"""One device's twin: patches on their way to the database, and what is published when they are there."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final, Protocol, final

import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.agents.book import Staged
from bridge.agents.host import Host
from bridge.agents.services import Services
from bridge.errors import RefusedError, StorageUnavailableError, VersionConflictError
from bridge.messages import Message, Sender
from bridge.receipts import Outcome
from bridge.storage import audit
from bridge.storage import twins as stored
from bridge.storage.twins import Change
from bridge.twin import Document, Part, Patch, Twin, decode, same

log = structlog.get_logger(__name__)

RETRY: Final = 1.0
"""Seconds between two tries to read a twin while the database is away."""


class Owner(Protocol):
    """The device whose twin it is."""

    id: str

    def desired_changed(self, desired: str) -> None:
        """Device logic may want to know."""

    @property
    def listening(self) -> bool:
        """Whether it can be sent something now."""


@final
class DeviceTwin:
    """The database holds the twin; what is kept here is how far the device has been told.

    A patch is merged in the transaction that stores it, so any number of them in one batch apply in order. It is
    acknowledged, answered and published after the commit.
    """

    __slots__ = ("_device", "_host", "_loading", "_services", "_told", "version")

    def __init__(self, device: Owner, version: int, services: Services, host: Host) -> None:
        """`version` is the stored one of desired; 0: there is nothing in it."""
        self._device = device
        self._services = services
        self._host = host
        self._loading = False
        self._told = 0
        """The version of which a delta was handed to the device's connection; 0 for none."""
        self.version = version

    # ------------------------------------------------------------------ patches

    def take(self, part: Part, message: Message) -> None:
        """Take a patch that came by MQTT. Raises RefusedError when it cannot be one."""
        try:
            patch = decode(message.payload, self._services.rules.twin_limits)
        except RefusedError as error:
            if part is Part.DESIRED:
                self._reject(error)
            raise
        self._submit(part, patch, message.received_at, message.receipt.once, message.address.sender).add_done_callback(
            partial(self._answer, part, message)
        )

    def desire(self, patch: Patch, done: asyncio.Future[Twin]) -> None:
        """Change desired; `done` has the twin after the commit, or the RefusedError or StorageError."""

        def committed(future: asyncio.Future[Change | RefusedError]) -> None:
            if future.cancelled() or done.done():
                return  # the writer has stopped, or nobody waits any more
            error = future.exception()
            result = error if error is not None else future.result()
            if isinstance(result, Change):
                done.set_result(result.after)
            elif result is not None:
                done.set_exception(result)

        self._submit(Part.DESIRED, patch, self._services.clock()).add_done_callback(committed)

    def stage(self, part: Part, changes: Document) -> Staged[Change | RefusedError]:
        """Change a part together with what caused it."""
        device_id, services, at = self._device.id, self._services, self._services.clock()

        async def change(connection: AsyncConnection) -> Change | RefusedError:
            return await stored.change(connection, device_id, part, Patch(changes), at, services.rules.twin_limits)

        def committed(result: Change | RefusedError) -> None:
            if isinstance(result, Change):
                services.census.twins[part.value] += result.after is not result.before
                self._changed(result)
            else:
                log.warning("a patch by device logic was refused", device=device_id, part=part.value, error=str(result))

        return change, committed

    def _submit(
        self,
        part: Part,
        patch: Patch,
        at: float,
        once: tuple[str, int] | None = None,
        sender: Sender | None = None,
    ) -> asyncio.Future[Change | RefusedError]:
        device_id, limits = self._device.id, self._services.rules.twin_limits
        keep = self._services.audit_lines

        async def change(connection: AsyncConnection) -> Change | RefusedError:
            result = await stored.change(connection, device_id, part, patch, at, limits, once)
            if sender is not None and isinstance(result, Change) and result.after is not result.before:
                line = audit.by_mqtt(at, sender, part.value, device_id, f"version {result.after.desired_version}")
                await audit.record(connection, line, keep)
            return result

        writer = self._services.writer
        # What a device reports is so already, and waits for the database; what an operator asks for is refused in time.
        patient = part is Part.REPORTED
        future = writer.submit(change, patient=patient) if once is None else writer.add_change(change)
        future.add_done_callback(partial(self._committed, part))
        return future

    def _committed(self, part: Part, future: asyncio.Future[Change | RefusedError]) -> None:
        if future.cancelled() or future.exception() is not None:
            return  # whoever asked is told
        result = future.result()
        if isinstance(result, Change):
            self._services.census.twins[part.value] += result.after is not result.before
            self._host.soon(partial(self._changed, result))

    def _answer(self, part: Part, message: Message, future: asyncio.Future[Change | RefusedError]) -> None:
        if future.cancelled():
            return  # the writer has stopped: nothing was promised
        error = future.exception()
        result = error if error is not None else future.result()
        if isinstance(result, Change):
            message.receipt.settle(Outcome.COMMITTED)
        elif isinstance(result, VersionConflictError):
            # An answer to the operator, nothing that has to be kept.
            self._reject(result)
            message.receipt.settle(Outcome.COMMITTED)
        elif isinstance(result, StorageUnavailableError):
            message.receipt.settle(Outcome.RETRY)
        else:
            refusal = result if isinstance(result, RefusedError) else RefusedError("not_storable", str(result))
            if part is Part.DESIRED:
                self._reject(refusal)
            self._services.refuse_message(message, refusal.reason, str(refusal))

    def _reject(self, error: RefusedError) -> None:
        """Tell operators why a patch of desired was not accepted."""
        self._services.census.twins["rejected"] += 1
        body: dict[str, Any] = {"reason": error.reason, "error": str(error)[:500]}
        if isinstance(error, VersionConflictError):
            body["expected"] = error.expected
            body["version"] = error.version
        self._services.publish_json(self._device.id, "state/rejected", body, qos=1)

    # ------------------------------------------------------------------ what is told

    def _changed(self, change: Change) -> None:
        before, after, missed = change
        self.version = after.desired_version
        if after is not before:
            self._services.publish_json(self._device.id, "state", msgspec.to_builtins(after), qos=1, retain=True)
            if after.desired is not before.desired:
                self._tell_logic(after)
            delta = after.delta
            if delta and not same(delta, before.delta):
                self._send(after.desired_version, delta)
        if missed is not None:
            self._send(after.desired_version, missed.delta, since=missed.since)

    def _tell_logic(self, twin: Twin) -> None:
        try:
            self._device.desired_changed(msgspec.json.encode(twin.desired).decode())
        except RefusedError as error:
            self._reject(error)

    def _send(self, version: int, delta: Document, since: int | None = None) -> None:
        body: dict[str, Any] = {"version": version, "delta": delta}
        if since is not None:
            body["since"] = since
        services = self._services
        topic = services.topics.of(self._device.id, "state/delta")
        if services.publish(topic, msgspec.json.encode(body), qos=1, live_only=True):
            self._told = version

    def catch_up(self, *, anew: bool) -> None:
        """The device listens (to one more topic): send what it has to do, unless that was handed to it already.
        `anew`: to a new connection."""
        if anew:
            self._told = 0
        if self.version == self._told or self._loading:
            return
        self._loading = True
        self._load()

    def _load(self) -> None:
        if not self._device.listening:
            self._loading = False
            return
        self._services.twins.request(self._device.id).add_done_callback(self._found)

    def _found(self, future: asyncio.Future[Twin | None]) -> None:
        if future.cancelled():
            return  # the bridge stops
        if future.exception() is not None:
            self._services.wheel.call_after(RETRY, self._load)
            return
        self._host.soon(partial(self._loaded, future.result()))

    def _loaded(self, twin: Twin | None) -> None:
        self._loading = False
        if twin is None:
            return
        if twin.desired_version < self.version:
            self.catch_up(anew=False)  # it was changed while we read
            return
        self.version = twin.desired_version
        if delta := twin.delta:
            self._send(self.version, delta)
        else:
            self._told = self.version
