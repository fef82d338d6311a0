"""Finding an agent class by what the settings call it."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import Any, Final

from bridge import imports
from bridge.agents.agent import Agent
from bridge.agents.handlers import Handlers
from bridge.errors import StartError

ENTRY_POINTS: Final = "mqtt_agent_bridge.agents"
"""The group in which an installed package can name its agent classes."""


def find_agent(name: str) -> type[Agent]:
    """The class that is called `package.module:Class`, or that an installed package has registered under `name`. The
    working directory is looked through as well, after everything that is installed.

    Raises StartError that says what is wrong with the name, the module or the class.
    """
    found = _registered(name) if ":" not in name else _imported(name)
    if not (isinstance(found, type) and issubclass(found, Agent)):
        raise StartError(f"agent {name!r} is {found!r}, which is no subclass of bridge.Agent")
    try:
        Handlers(found)
    except TypeError as error:
        raise StartError(f"agent {name!r}: {error}") from error
    return found


def _registered(name: str) -> Any:
    registered = entry_points(group=ENTRY_POINTS)
    for entry in registered:
        if entry.name == name:
            try:
                return entry.load()
            except Exception as error:
                raise StartError(f"agent {name!r} ({entry.value}) cannot be imported: {_said(error)}") from error
    near = difflib.get_close_matches(name, registered.names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise StartError(f"no installed package has an agent {name!r}: name its class as package.module:Class{hint}")


def _imported(name: str) -> Any:
    try:
        return imports.named(name)
    except ImportError as error:
        raise StartError(f"agent {name!r}: {error}") from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
