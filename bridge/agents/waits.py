"""What an agent is waiting for, for those who ask why a device is slow. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final


@final
@dataclass(frozen=True, slots=True)
class Wait:
    """One agent that has something to do and is not done with it."""

    device_id: str
    reason: Literal["state", "handler", "commit", "turn"]
    """Its stored state is being loaded; a handler of its device logic runs; what that has caused is being committed;
    or it waits for its turn on the event loop."""
    handler: str
    """The handler that runs or has run, empty if it is none."""
    since: float
    """Unix seconds."""
    messages: int
    """Messages that wait behind it."""
