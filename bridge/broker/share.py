"""How much of what is under way one connection may have: a device at full speed must not make the others wait. Pure."""

from __future__ import annotations

from typing import Final, final

FAIR: Final = 200
"""Messages that any connection may have unsettled, however many others have some, too. More than a device sends at
once when it has something to say, and few enough that a commit with them in it is a short one."""


@final
class Share:
    """The receive window of the moment: all of it for a connection that is alone, an even part of it for each of a few,
    and no less than FAIR. So a message of a quiet device waits for a commit with FAIR messages of a busy one in it, not
    with all that the busy one can send meanwhile."""

    __slots__ = ("_least", "_most", "busy", "window")

    def __init__(self, most: int) -> None:
        """`most`: unsettled messages of one connection when no other has any."""
        self._most = most
        self._least = min(most, FAIR)
        self.busy = 0
        """Connections with unsettled messages."""
        self.window = most
        """Unsettled messages at which a connection is not read any further."""

    def enter(self) -> None:
        """A connection has got its first unsettled message."""
        self.busy = busy = self.busy + 1
        self.window = max(self._least, self._most // busy)

    def leave(self) -> None:
        """A connection has no unsettled message any more."""
        self.busy = busy = self.busy - 1
        self.window = max(self._least, self._most // busy) if busy else self._most
