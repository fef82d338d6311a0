"""The registry: which devices there are, what kind they are, who they are at the door."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, HTTPException, Path, Query, Request
from pydantic import Field

from bridge.errors import RefusedError
from bridge.http.access import ADMIN
from bridge.http.audit import note
from bridge.http.context import Context
from bridge.http.devices import DeviceId
from bridge.http.models import Model, moment
from bridge.http.paging import Limit
from bridge.profiles import Profile
from bridge.registry import Admission, Entry
from bridge.storage import registry as stored

IMPORTED: Final = 1_000
"""Devices in one request."""

Tags = Annotated[list[str], Field(max_length=64)]


class ProfileView(Model):
    """A kind of devices. Times are seconds; without a ping interval such devices are not pinged."""

    name: str
    description: str
    match: list[str]
    agent: str
    ping_interval: float | None
    ping_misses: int
    command_ttl: float
    command_attempts: int
    command_retry_after: float
    commands: dict[str, Any] = Field(
        description="The commands that they know: by name the JSON Schema of the arguments."
    )

    @classmethod
    def of(cls, profile: Profile) -> ProfileView:
        """The view of a profile."""
        return cls(
            name=profile.name,
            description=profile.description,
            match=list(profile.match),
            agent=profile.agent,
            ping_interval=profile.ping_interval if profile.ping_interval < float("inf") else None,
            ping_misses=profile.ping_misses,
            command_ttl=profile.command_ttl,
            command_attempts=profile.command_attempts,
            command_retry_after=profile.command_retry_after,
            commands=dict(profile.commands),
        )


class ProfileList(Model):
    """All profiles, in the order of the settings."""

    profiles: list[ProfileView]


class EntryBody(Model):
    """A device to be registered. What is left out stays as it is."""

    device_id: str = Field(max_length=200, examples=["freezer-7"])
    profile: str | None = Field(None, max_length=64)
    tags: Tags | None = Field(None, description="These take the place of all earlier ones.")
    metadata: dict[str, Any] | None = None

    def entry(self) -> Entry:
        """What the registry takes."""
        return Entry(self.device_id, self.profile, None if self.tags is None else tuple(self.tags), self.metadata)


class ImportBody(Model):
    """Devices to be registered: all of them, or none if any cannot be."""

    devices: list[EntryBody] = Field(min_length=1, max_length=IMPORTED)
    dry_run: bool = Field(False, description="Only say whether they could be.")


class Imported(Model):
    """How many there were, and how many of them were new."""

    devices: int
    new: int


class EntryView(Model):
    """What the registry says of a device."""

    device_id: str
    profile: str
    tags: list[str]
    metadata: dict[str, Any]

    @classmethod
    def of(cls, entry: Entry) -> EntryView:
        """The view of an entry."""
        return cls(
            device_id=entry.device_id,
            profile=entry.profile or "",
            tags=list(entry.tags or ()),
            metadata=entry.metadata or {},
        )


class EntryPage(Model):
    """Entries in the order of their ids. `next` is the `after` of the following page."""

    devices: list[EntryView]
    next: str | None


class EntryChange(Model):
    """What is to change; what is left out stays as it is."""

    profile: str | None = Field(None, max_length=64)
    add_tags: Tags = Field(default_factory=list)
    remove_tags: Tags = Field(default_factory=list)
    metadata: dict[str, Any] | None = Field(None, description="Takes the place of what is there.")


class AdmissionBody(Model):
    """Whether a device may take part: an approved one may, one in quarantine may not."""

    approved: bool = True


class CredentialView(Model):
    """A credential, without what it is secret for."""

    credential_id: str
    created_at: datetime


class CredentialList(Model):
    """A device's credentials, the oldest first."""

    credentials: list[CredentialView]


class NewCredential(CredentialView):
    """A credential that was just issued: its token is shown this once."""

    device_id: str = Field(description="Also the user name with which the device connects.")
    token: str


class Revoked(Model):
    """How many credentials were revoked."""

    revoked: int


def routes(context: Context) -> APIRouter:
    """`/profiles`, `/registry`, `/registry/{device_id}`, `/registry/{device_id}/credentials`."""
    api = APIRouter(tags=["registry"])
    registry, database = context.registry, context.database

    @api.get("/profiles")
    async def profiles() -> ProfileList:
        """Kinds of devices, as the settings have them."""
        return ProfileList(profiles=[ProfileView.of(profile) for profile in context.services.profiles])

    @api.get("/registry")
    async def page(
        limit: Limit = 100,
        after: Annotated[str, Query(max_length=64)] = "",
        quarantined: Annotated[bool, Query(description="Only those that wait for their approval.")] = False,
    ) -> EntryPage:
        """What the registry says of all devices; `after` is the last id of the page before."""
        found = await database.read(
            lambda connection: stored.list_entries(connection, limit, after, quarantined=quarantined)
        )
        following = found[-1].device_id if len(found) == limit else None
        return EntryPage(devices=[EntryView.of(entry) for entry in found], next=following)

    @api.post("/registry", dependencies=[ADMIN])
    async def put(body: ImportBody, request: Request) -> Imported:
        """Register devices, new ones and known ones, and accept them. The same again changes nothing."""
        entries = [device.entry() for device in body.devices]
        for index, entry in enumerate(entries):
            try:
                entry.check(profile.name for profile in context.services.profiles)
            except RefusedError as error:
                raise HTTPException(422, f"devices.{index}.{error.reason}: {error}") from error
        new = [] if body.dry_run else await registry.put(entries)
        first = ", ".join(entry.device_id for entry in entries[:3]) + (", …" if len(entries) > 3 else "")
        note(request, f"{'dry run, ' if body.dry_run else ''}{len(entries)} devices, {len(new)} new: {first}")
        return Imported(devices=len(entries), new=len(new))

    @api.get("/registry/{device_id}")
    async def one(device_id: DeviceId) -> EntryView:
        """What the registry says of a device."""
        found = await database.read(lambda connection: stored.describe(connection, [device_id]))
        if device_id not in found:
            raise HTTPException(404, f"there is no device {device_id!r}")
        return EntryView.of(found[device_id])

    @api.patch("/registry/{device_id}", dependencies=[ADMIN])
    async def change(device_id: DeviceId, body: EntryChange, request: Request) -> EntryView:
        """Change a device's profile, tags or metadata."""
        entry = await registry.change(
            device_id,
            profile=body.profile,
            add_tags=body.add_tags,
            remove_tags=body.remove_tags,
            metadata=body.metadata,
        )
        changes = [
            *([f"profile {body.profile}"] if body.profile is not None else []),
            *(f"tag +{tag}" for tag in body.add_tags),
            *(f"tag -{tag}" for tag in body.remove_tags),
            *(["metadata"] if body.metadata is not None else []),
        ]
        note(request, ", ".join(changes))
        return EntryView.of(entry)

    @api.put("/registry/{device_id}/admission", dependencies=[ADMIN], status_code=204)
    async def admit(device_id: DeviceId, body: AdmissionBody, request: Request) -> None:
        """Approve a device, or quarantine it."""
        await registry.admit(device_id, Admission.ACCEPTED if body.approved else Admission.QUARANTINED)
        note(request, "approved" if body.approved else "quarantined")

    @api.delete("/registry/{device_id}", dependencies=[ADMIN], status_code=204)
    async def delete(device_id: DeviceId) -> None:
        """Delete a device with everything that is stored of it, and close its connections."""
        await registry.delete(device_id)

    @api.get("/registry/{device_id}/credentials", dependencies=[ADMIN])
    async def credentials(device_id: DeviceId) -> CredentialList:
        """A device's credentials."""
        found = await database.read(lambda connection: stored.load_credentials(connection, [device_id]))
        return CredentialList(
            credentials=[
                CredentialView(credential_id=one.credential_id, created_at=moment(one.created_at))
                for one in found.get(device_id, ())
            ]
        )

    @api.post("/registry/{device_id}/credentials", dependencies=[ADMIN], status_code=201)
    async def issue(device_id: DeviceId, request: Request) -> NewCredential:
        """Issue a credential: the device connects with its id as the user name and the token as the password."""
        credential, token = await registry.issue(device_id)
        note(request, f"credential {credential.credential_id}")
        return NewCredential(
            credential_id=credential.credential_id,
            created_at=moment(credential.created_at),
            device_id=device_id,
            token=token,
        )

    @api.delete("/registry/{device_id}/credentials", dependencies=[ADMIN])
    async def revoke_all(device_id: DeviceId) -> Revoked:
        """Revoke all credentials of a device, and close its connections."""
        return Revoked(revoked=await registry.revoke(device_id))

    @api.delete("/registry/{device_id}/credentials/{credential_id}", dependencies=[ADMIN])
    async def revoke(device_id: DeviceId, credential_id: Annotated[str, Path(max_length=64)]) -> Revoked:
        """Revoke one credential of a device, and close its connections."""
        revoked = await registry.revoke(device_id, credential_id)
        if not revoked:
            raise HTTPException(404, f"{device_id} has no credential {credential_id!r}")
        return Revoked(revoked=revoked)

    return api
