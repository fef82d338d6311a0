"""What agents keep of their devices."""

from __future__ import annotations

from typing import Final, NamedTuple, final

import msgspec
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.storage.database import Database
from bridge.storage.loader import Loader
from bridge.storage.tables import agent_states


class AgentState(NamedTuple):
    """A row, in the order of the table's columns: `state` and `timers` are JSON, `due` is Unix seconds."""

    device_id: str
    agent: str
    version: int
    state: str
    timers: str
    due: float | None


_STATES: Final = select(
    agent_states.c.device_id,
    agent_states.c.agent,
    agent_states.c.version,
    agent_states.c.state,
    agent_states.c.timers,
    agent_states.c.due,
)
# One parameter for any number of keys, as for devices.
_LOAD: Final = {
    "sqlite": _STATES.where(
        text("(device_id, agent) IN (SELECT value ->> 0, value ->> 1 FROM json_each(:keys))"),
    ),
    "postgresql": _STATES.where(
        text(
            "(device_id, agent) IN"
            " (SELECT value ->> 0, value ->> 1 FROM json_array_elements(CAST(:keys AS json)) AS k(value))"
        ),
    ),
}


async def _load(connection: AsyncConnection, keys: list[tuple[str, str]]) -> dict[tuple[str, str], AgentState]:
    parameters = {"keys": msgspec.json.encode(keys).decode()}
    states = [AgentState(*row) for row in await connection.execute(_LOAD[connection.dialect.name], parameters)]
    return {(state.device_id, state.agent): state for state in states}


@final
class AgentLoader(Loader[tuple[str, str], AgentState]):
    """Loads what agents keep, by device and the agent class's name."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, _load)


async def waiting_for_time(connection: AsyncConnection, agents: list[str]) -> list[tuple[str, float]]:
    """The devices on which an agent class of these names has a timer, each with the time of the first one."""
    query = select(agent_states.c.device_id, agent_states.c.due).where(
        agent_states.c.due.is_not(None), agent_states.c.agent.in_(agents)
    )
    return [(device_id, due) for device_id, due in await connection.execute(query)]
