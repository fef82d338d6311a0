"""MQTT Agent Bridge: an MQTT broker, an agent per device and a database writer in one process.

What device logic is written with is imported from here: `from bridge import Agent, every, on`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from bridge.agents.agent import Agent
    from bridge.agents.handlers import every, on
    from bridge.commands import Command, CommandStatus
    from bridge.errors import RefusedError
    from bridge.presence import Transition

__version__ = "0.1.0"
__all__ = ["Agent", "Command", "CommandStatus", "RefusedError", "Transition", "__version__", "every", "on"]

_HOMES: Final = {
    "Agent": "bridge.agents.agent",
    "every": "bridge.agents.handlers",
    "on": "bridge.agents.handlers",
    "Command": "bridge.commands",
    "CommandStatus": "bridge.commands",
    "RefusedError": "bridge.errors",
    "Transition": "bridge.presence",
}


def __getattr__(name: str) -> Any:
    # On first use, so that whoever imports one module of this package does not pay for the others.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value
