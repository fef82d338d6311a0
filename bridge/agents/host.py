"""What the parts of a device may ask of the cell that it lives in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Host(Protocol):
    """The cell that a device lives in."""

    def call_before(self, when: float) -> None:
        """See to it that the device looks at what is due at `when` (Unix seconds) at the latest."""

    def soon(self, callback: Callable[[], None]) -> None:
        """Call from the device's own coroutine."""
