"""Who may use the API: roles, and the tokens that carry them. Pure: randomness comes from the system."""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
import secrets
from typing import Final, final

import msgspec

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
PREFIX: Final = "mab_"
"""What every token begins with: scanners for leaked secrets, and people, see what it is."""


class Role(enum.StrEnum):
    """What a caller may do; each role may do what the one before it may."""

    VIEWER = "viewer"
    """Read."""
    OPERATOR = "operator"
    """Also send commands, change twins, replay dead letters."""
    ADMIN = "admin"
    """Also change devices, credentials and tokens, and see settings and the audit trail."""

    def allows(self, needed: Role) -> bool:
        """Whether this role may do what `needed` may."""
        return _RANK[self] >= _RANK[needed]


_RANK: Final = {role: rank for rank, role in enumerate(Role)}


@final
class Token(msgspec.Struct):
    """A token as it is stored: its digest, never itself. Times are Unix seconds; `used_at` is coarse."""

    name: str
    role: Role
    digest: bytes
    created_at: float
    used_at: float | None = None
    revoked_at: float | None = None


def mint() -> str:
    """A new token, 256 bits from the system's source."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(token: str) -> bytes:
    """What is stored of a token. One round of SHA-256 is enough: a slow hash makes guessing a weak password
    expensive, and nobody guesses 256 random bits. Looking a digest up takes a time that depends on the digest, of
    which a caller knows nothing and chooses nothing."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def same(one: bytes, other: bytes) -> bool:
    """Whether two digests are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(one, other)


def is_name(text: str) -> bool:
    """Whether `text` may name a token: 1 to 64 of `A-Z a-z 0-9 . _ @ -`, the first a letter or digit."""
    return NAME.fullmatch(text) is not None
