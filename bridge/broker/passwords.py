"""Users in a file, `name:hash` or `name:hash:operator` a line: `hash` is argon2's, or `$sha256$` and the SHA-256 of a
random token in hexadecimal. Slow hashes are checked off the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple, final

import argon2
import structlog

from bridge.broker.access import Role
from bridge.errors import StartError

log = structlog.get_logger(__name__)

AT_ONCE: Final = 2
"""Hashes computed at the same time: each takes a core and 64 MiB for a moment."""
TOKEN_HASH: Final = "$sha256$"  # noqa: S105 - says which hash, and is none
"""Begins the hash of a long random token. Nobody can guess one, so a fast hash keeps it as safe, and ten thousand
devices that come back at once need not wait for ten thousand slow ones."""


class User(NamedTuple):
    """A line of the file."""

    hash: str
    role: Role


@final
class Passwords:
    """The users of a password file."""

    def __init__(self, path: Path) -> None:
        """Raises StartError that names the line that cannot be read."""
        self._users = _read(path)
        self._hasher = argon2.PasswordHasher()
        # Verified for unknown names too, so that the time it takes does not tell which names exist.
        self._nobody = self._hasher.hash("nobody has this password")
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="passwords")

    def knows(self, name: str | None) -> bool:
        """Whether a user is in the file."""
        return name in self._users

    async def check(self, name: str, password: bytes) -> User | None:
        """The user if the password, or token, is right."""
        user = self._users.get(name)
        if user is not None and user.hash.startswith(TOKEN_HASH):
            digest = hashlib.sha256(password).hexdigest()
            return user if hmac.compare_digest(digest, user.hash[len(TOKEN_HASH) :].lower()) else None
        right = await asyncio.get_running_loop().run_in_executor(self._threads, self._verify, user, password)
        return user if right else None

    def close(self) -> None:
        """Stop the threads; checks that wait are not done."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify(self, user: User | None, password: bytes) -> bool:
        try:
            self._hasher.verify(self._nobody if user is None else user.hash, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False
        return user is not None


def _read(path: Path) -> dict[str, User]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        # The first start of a container, for one: devices may have tokens of their own, and a mistake lets nobody in.
        log.warning(
            "there is no password file yet: nobody gets in by it",
            file=str(path),
            make_it=f"mqtt-bridge passwd {path} NAME",
        )
        return {}
    except OSError as error:
        raise StartError(f"the password file {path} cannot be read: {error.strerror}") from error
    users = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, rest = line.strip().partition(":")
        hash_, _, role = rest.partition(":")
        if not separator or not hash_.startswith(("$argon2", TOKEN_HASH)) or role not in ("", *Role):
            raise StartError(f"{path}, line {number}: write `name:argon2hash` or `name:argon2hash:operator`")
        users[name] = User(hash_, Role(role or Role.DEVICE))
    log.info("users read", file=str(path), users=len(users))
    return users
