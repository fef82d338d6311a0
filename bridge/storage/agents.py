"""What agents keep of their devices."""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.storage.tables import agent_states


class AgentState(NamedTuple):
    """A row, in the order of the table's columns: `state` and `timers` are JSON, `due` is Unix seconds."""

    device_id: str
    agent: str
    version: int
    state: str
    timers: str
    due: float | None


_COLUMNS: Final = (
    agent_states.c.device_id,
    agent_states.c.agent,
    agent_states.c.version,
    agent_states.c.state,
    agent_states.c.timers,
    agent_states.c.due,
)


async def load_agent(connection: AsyncConnection, device_id: str, agent: str) -> AgentState | None:
    """What the agent class of this name keeps of a device, None if nothing yet."""
    query = select(*_COLUMNS).where(agent_states.c.device_id == device_id, agent_states.c.agent == agent)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else AgentState(*row)


async def waiting_for_time(connection: AsyncConnection, agents: list[str]) -> list[tuple[str, float]]:
    """The devices on which an agent class of these names has a timer, each with the time of the first one."""
    query = select(agent_states.c.device_id, agent_states.c.due).where(
        agent_states.c.due.is_not(None), agent_states.c.agent.in_(agents)
    )
    return [(device_id, due) for device_id, due in await connection.execute(query)]
