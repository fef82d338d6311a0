"""What the registry says of a device, and what may be said there. Pure."""

from __future__ import annotations

import enum
import re
import secrets
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

from bridge.errors import RefusedError
from bridge.tokens import digest, mint, same
from bridge.topics import is_device_id

TAG: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
MAX_TAGS: Final = 32
"""Tags of one device."""
MAX_METADATA: Final = 16_384
"""Bytes of a device's metadata as JSON."""
MAX_CREDENTIALS: Final = 8
"""Credentials of one device: one in use, one that takes its place, and a few that were forgotten."""


class Admission(enum.StrEnum):
    """Whether a device may take part."""

    ACCEPTED = "accepted"
    QUARANTINED = "quarantined"
    """Known, and its messages are kept as dead letters until somebody approves of it."""
    UNKNOWN = "unknown"
    """Not in the registry, and by the settings not to be taken on."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be known of a device. What is None stays as it is, and for a new device is as for any unknown one."""

    device_id: str
    profile: str | None = None
    tags: tuple[str, ...] | None = None
    metadata: dict[str, Any] | None = None

    def check(self, profiles: Iterable[str]) -> None:
        """Raises RefusedError, whose reason is the name of the field that is wrong."""
        if not is_device_id(self.device_id):
            raise RefusedError("device_id", f"{self.device_id[:80]!r}: use 1 to 64 of A-Z a-z 0-9 . _ : -")
        if self.profile is not None and self.profile not in profiles:
            raise RefusedError("profile", f"there is no profile {self.profile!r} in the settings")
        check_tags(self.tags or ())
        if self.metadata is not None and len(msgspec.json.encode(self.metadata)) > MAX_METADATA:
            raise RefusedError("metadata", f"more than {MAX_METADATA:,} bytes")


def check_tags(tags: Iterable[str]) -> None:
    """Raises RefusedError for too many tags, or one with other characters than those of an id."""
    tags = tuple(tags)
    if len(tags) > MAX_TAGS:
        raise RefusedError("tags", f"{len(tags)} tags; a device has at most {MAX_TAGS}")
    for tag in tags:
        if TAG.fullmatch(tag) is None:
            raise RefusedError("tags", f"{tag[:80]!r}: a tag is 1 to 64 of A-Z a-z 0-9 . _ : -")


class Credential(NamedTuple):
    """A device's token, as it is stored: its digest, never itself. `created_at` is Unix seconds."""

    credential_id: str
    device_id: str
    digest: bytes
    created_at: float

    def fits(self, token: bytes) -> bool:
        """Whether `token` is this one; takes as long whether it is or not."""
        return same(self.digest, digest(token.decode("utf-8", "replace")))


def fits(credentials: Iterable[Credential], token: bytes) -> bool | None:
    """Whether a token is one of a device's, None if it has none; takes as long whichever it is."""
    compared = [credential.fits(token) for credential in credentials]
    return True in compared if compared else None


def new_credential(device_id: str, now: float) -> tuple[Credential, str]:
    """A credential and its token, which is known now and never again."""
    token = mint()
    return Credential(secrets.token_hex(4), device_id, digest(token), now), token
