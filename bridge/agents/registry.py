"""The registry while the bridge runs: what changes is stored first, then the agents in memory are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.agents.device import Device
from bridge.agents.router import Router
from bridge.agents.services import Services
from bridge.errors import RefusedError, StorageUnavailableError
from bridge.presence import Status
from bridge.registry import MAX_CREDENTIALS, Admission, Credential, Entry, check_tags, fits, new_credential
from bridge.storage import registry as stored
from bridge.storage.credentials import CredentialCopy
from bridge.storage.database import Database
from bridge.storage.loader import Loader
from bridge.topics import NO_GRANTS, Grants

PORTION: Final = 1_000
"""Rows that are deleted in one commit."""
ANSWER_WITHIN: Final = 2.0
"""Seconds after which the copy of the credentials is asked instead of the database."""


@final
class Registry:
    """Devices as they are registered. Also what the broker's front door asks about them (`login.Credentials`).

    Every change is answered after its commit. Methods raise RefusedError for what cannot be, `no_device` for a device
    that is not there.
    """

    def __init__(
        self, services: Services, router: Router, database: Database, copy: CredentialCopy | None = None
    ) -> None:
        """`copy`: of the credentials, for when the database cannot be asked."""
        self._services = services
        self._router = router
        self._copy = copy
        self._database = database
        self._credentials: Loader[str, list[Credential]] = Loader(database, stored.load_credentials)
        self.kick: Callable[[str, str], int]
        """Set by the composition root: closes the connections of a user, with a cause."""

    # ------------------------------------------------------------------ devices

    async def put(self, entries: Sequence[Entry]) -> list[str]:
        """Store devices, new ones and known ones, and accept them. Returns the ids of the new ones."""
        profiles = self._services.profiles
        for entry in entries:
            entry.check(profile.name for profile in profiles)
        fallback = {entry.device_id: profiles.of_unknown(entry.device_id).name for entry in entries}
        now = self._services.clock()

        async def put(connection: AsyncConnection) -> list[str]:
            return await stored.put_devices(connection, entries, fallback, now)

        new = await self._services.writer.submit(put)
        self._services.census.devices[Status.UNKNOWN.value] += len(new)
        for entry in entries:
            profile = entry.profile or (fallback[entry.device_id] if entry.device_id in new else None)
            self._tell(entry.device_id, profile, Admission.ACCEPTED)
        return new

    async def change(
        self,
        device_id: str,
        *,
        profile: str | None = None,
        add_tags: Sequence[str] = (),
        remove_tags: Sequence[str] = (),
        metadata: dict[str, Any] | None = None,
    ) -> Entry:
        """Change what the registry says of a device, and return it. `metadata` takes the place of the earlier ones."""
        Entry(device_id, profile, None, metadata).check(known.name for known in self._services.profiles)
        check_tags(add_tags)

        async def change(connection: AsyncConnection) -> Entry:
            entry = await _described(connection, device_id)
            tags = [tag for tag in entry.tags or () if tag not in remove_tags]
            check_tags(dict.fromkeys([*tags, *add_tags]))
            if profile is not None:
                await stored.set_profile(connection, device_id, profile)
            if metadata is not None:
                await stored.set_metadata(connection, device_id, msgspec.json.encode(metadata).decode())
            await stored.change_tags(connection, device_id, add_tags, remove_tags)
            return await _described(connection, device_id)

        entry = await self._services.writer.submit(change)
        if profile is not None:
            self._router.tell(device_id, lambda device: device.registered(profile, device.admission))
        return entry

    async def admit(self, device_id: str, admission: Admission) -> None:
        """Approve a device, or quarantine it."""

        async def admit(connection: AsyncConnection) -> None:
            if not await stored.set_admission(connection, device_id, admission):
                raise _no_device(device_id)

        await self._services.writer.submit(admit)
        self._tell(device_id, None, admission)

    async def delete(self, device_id: str) -> None:
        """Delete a device and all that is stored of it, in portions. Its connections are closed; if it comes back it is
        an unknown one."""
        services = self._services
        snapshot = await services.loader.load(device_id)
        if snapshot is None:
            raise _no_device(device_id)
        with self._changing(device_id):
            if self._copy is not None:
                await self._copy.forget(device_id)
            await self._delete(device_id)
        here = self._router.find(device_id)
        services.census.devices[snapshot.status if here is None else here.liveness.counted_as.value] -= 1
        self._router.renew(device_id)

    async def _delete(self, device_id: str) -> None:
        services = self._services
        # First nothing new may be written of it, then everything that was handed over must be there to be deleted.
        device = self._router.cell(device_id)
        device.tell(Device.removed)
        self.kick(device_id, "deleted")
        self._router.catch_up()
        services.publish(services.topics.of(device_id, "presence"), b"", retain=True)
        await services.writer.barrier()
        while await services.writer.submit(lambda connection: stored.delete_some(connection, device_id, PORTION)):
            pass

    def _tell(self, device_id: str, profile: str | None, admission: Admission) -> None:
        self._router.tell(device_id, lambda device: device.registered(profile, admission))

    # ------------------------------------------------------------------ credentials

    async def issue(self, device_id: str) -> tuple[Credential, str]:
        """A new credential for a device, and its token, which is told this once."""
        credential, token = new_credential(device_id, self._services.clock())

        async def issue(connection: AsyncConnection) -> None:
            await _described(connection, device_id)
            if not await stored.add_credential(connection, credential):
                raise RefusedError("credentials", f"{device_id} has {MAX_CREDENTIALS} credentials: revoke one first")

        with self._changing(device_id):
            await self._services.writer.submit(issue)
            if self._copy is not None:
                await self._copy.add(credential)
        return credential, token

    async def revoke(self, device_id: str, credential_id: str | None = None) -> int:
        """Take back one credential of a device, or all, and close its connections; how many there were."""

        async def revoke(connection: AsyncConnection) -> int:
            return await stored.revoke_credentials(connection, device_id, credential_id)

        with self._changing(device_id):
            if self._copy is not None:
                await self._copy.forget(device_id, credential_id)
            revoked = await self._services.writer.submit(revoke)
        if revoked:
            self.kick(device_id, "revoked")
        return revoked

    def _changing(self, device_id: str) -> AbstractContextManager[None]:
        return nullcontext() if self._copy is None else self._copy.changing(device_id)

    async def check(self, username: str, password: bytes) -> bool | None:
        """See `login.Credentials`. Read from the database each time: a thousand devices that come at once are one
        query, and what is revoked is revoked. While it is away or slow the copy is asked."""
        return fits(await self._credentials_of(username), password)

    async def _credentials_of(self, device_id: str) -> list[Credential]:
        copy = self._copy
        if copy is None:
            return await self._credentials.load(device_id) or []
        if not self._services.writer.diverting:
            try:
                async with asyncio.timeout(ANSWER_WITHIN):
                    return await self._credentials.load(device_id) or []
            except (StorageUnavailableError, TimeoutError):
                pass  # the copy is there for this
        return await copy.of(device_id)

    async def admits(self, username: str) -> bool:
        """See `login.Credentials`."""
        if self._services.unknown is not Admission.UNKNOWN:
            return True
        device = self._router.find(username)
        if device is not None:
            return device.admission is not Admission.UNKNOWN
        return await self._services.loader.load(username) is not None

    async def grants(self, username: str) -> Grants:
        """See `login.Credentials`: those of the device's profile."""
        profiles = self._services.profiles
        if not any(profile.grants != NO_GRANTS for profile in profiles):
            return NO_GRANTS  # what ten thousand devices that come at once need not ask the database for
        device = self._router.find(username)
        if device is not None:
            return device.profile.grants
        snapshot = await self._services.loader.load(username)
        return (profiles.of_unknown(username) if snapshot is None else profiles.get(snapshot.profile)).grants


async def _described(connection: AsyncConnection, device_id: str) -> Entry:
    entry = (await stored.describe(connection, [device_id])).get(device_id)
    if entry is None:
        raise _no_device(device_id)
    return entry


def _no_device(device_id: str) -> RefusedError:
    return RefusedError(
        "no_device", f"there is no device {device_id!r}: `mqtt-bridge devices add {device_id}` makes it known"
    )
