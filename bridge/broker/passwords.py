"""Users in a file, `name:argon2hash` or `name:argon2hash:operator` a line, checked off the event loop."""

from __future__ import annotations

import asyncio
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
WAITING: Final = 1_000
"""Clients that may wait for theirs; more are refused as `unavailable` and try again."""


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
        self._waiting = 0

    @property
    def busy(self) -> bool:
        """Whether as many clients wait as may."""
        return self._waiting >= WAITING

    async def check(self, name: str, password: bytes) -> User | None:
        """The user if the password is right."""
        user = self._users.get(name)
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            right = await loop.run_in_executor(self._threads, self._verify, user, password)
        finally:
            self._waiting -= 1
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
        lines = path.read_text().splitlines()
    except OSError as error:
        raise StartError(f"the password file {path} cannot be read: {error.strerror}") from error
    users = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, rest = line.strip().partition(":")
        hash_, _, role = rest.partition(":")
        if not separator or not hash_.startswith("$argon2") or role not in ("", *Role):
            raise StartError(f"{path}, line {number}: write `name:argon2hash` or `name:argon2hash:operator`")
        users[name] = User(hash_, Role(role or Role.DEVICE))
    log.info("users read", file=str(path), users=len(users))
    return users
