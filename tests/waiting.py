"""Waiting in tests: for something that becomes true, never for a length of time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds. Far more than anything takes: on a loaded machine a test should be slow, not wrong."""


def until(check: Callable[[], T], what: str, timeout: float = PATIENCE) -> T:
    """The first true result of `check`; fails naming `what` when there was none within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        if result := check():
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what}; last seen: {result!r}")
        time.sleep(0.02)


async def eventually(check: Callable[[], T], what: str = "it", timeout: float = PATIENCE) -> T:
    """As `until`, in turns with what else the event loop has to do."""
    deadline = time.monotonic() + timeout
    while not (result := check()):
        assert time.monotonic() < deadline, f"waited {timeout:g} s in vain for {what}; last seen: {result!r}"
        await asyncio.sleep(0.002)
    return result
