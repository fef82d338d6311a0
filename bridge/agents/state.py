"""The state of an agent between two calls: made from what is stored, and what of it has to be stored."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from bridge.agents.agent import Agent
from bridge.agents.effects import StoredState
from bridge.agents.handlers import Handlers

MAX_STATE: Final = 256 * 1024
"""Bytes of an agent's state as JSON."""


class StateError(Exception):
    """The stored state cannot be used."""


def restored(agent_class: type[Agent], handlers: Handlers, stored: StoredState | None) -> Any:
    """A new instance of the last committed state, None for a class without one. Raises StateError."""
    kind = handlers.state
    if kind is None:
        return None
    if stored is None:
        return kind()
    version, wanted = stored.version, agent_class.state_version
    if version > wanted:
        raise StateError(f"the stored state has version {version}, {handlers.title} only {wanted}")
    try:
        if version == wanted:
            return msgspec.json.decode(stored.state, type=kind)
        return msgspec.convert(agent_class.migrate(version, msgspec.json.decode(stored.state)), kind)
    except Exception as error:
        raise StateError(
            f"the stored state (version {version}) is no {handlers.title}.State (version {wanted}): {error};"
            " it is kept as it is"
        ) from error


def changed(
    agent: Agent, handlers: Handlers, timers: dict[str, float], stored: StoredState | None
) -> StoredState | None:
    """The agent's state if it has to be stored, None if that is what is stored already.

    Raises TypeError or ValueError for one that cannot be stored.
    """
    kind = handlers.state
    text = "{}"
    if kind is not None:
        state = agent._state
        if not isinstance(state, kind):
            raise TypeError(f"state must be a {handlers.title}.State, not {type(state).__name__}")
        text = msgspec.json.encode(state).decode()
        if len(text) > MAX_STATE:
            raise ValueError(f"the state has {len(text)} bytes as JSON, more than {MAX_STATE}")
    now = StoredState(type(agent).state_version, text, timers)
    if now == stored or (stored is None and not timers and text == _initial(kind)):
        return None
    return now


def _initial(kind: type[msgspec.Struct] | None) -> str:
    return "{}" if kind is None else msgspec.json.encode(kind()).decode()
