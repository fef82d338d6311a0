"""A router with its agents on a real database, and in the broker's place something that writes down what is sent."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from bridge.agents.agent import Agent
from bridge.agents.registry import Registry
from bridge.agents.router import Router
from bridge.agents.services import Rules, Services
from bridge.messages import Message
from bridge.profiles import Profile, Profiles
from bridge.receipts import Ledger, Receipt
from bridge.registry import Admission
from bridge.storage.database import Database
from bridge.storage.devices import DeviceLoader
from bridge.storage.writer import Writer
from bridge.topics import Topics


@dataclass
class Sent:
    """One call of publish."""

    topic: str
    body: Any
    qos: int
    retain: bool
    on_ack: Callable[[], None] | None


class Line:
    """A connection as the agents see it."""

    def __init__(self, client_id: str = "c1") -> None:
        self.client_id = client_id

    def kick(self, cause: str) -> None:
        raise AssertionError(f"nobody asked for a kick: {cause}")


class House:
    """The agents' room with its doors open."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        rules: Rules,
        agent: type[Agent] | None,
        clock: Callable[[], float],
        profiles: Profiles | None,
        unknown: Admission,
    ) -> None:
        self.database = database
        self.clock = clock
        self.writer = writer
        self.ledger = Ledger()
        self.topics = Topics(
            "devices",
            [rule for profile in profiles or () for rule in profile.rules],
            {profile.name: profile.requests for profile in profiles or ()},
        )
        self.sent: list[Sent] = []
        self.services = Services(
            writer=writer,
            loader=DeviceLoader(database),
            topics=self.topics,
            rules=rules,
            clock=clock,
            profiles=profiles
            if agent is None
            else Profiles([Profile(agent="the agent", ping_interval=rules.ping_interval)]),
            agents=None if agent is None else {"the agent": agent},
            unknown=unknown,
        )
        self.services.publish = self.publish
        self.router = Router(self.services)
        self.registry = Registry(self.services, self.router, database)
        self.kicked: list[tuple[str, str]] = []
        self.registry.kick = self.kick

    def kick(self, username: str, cause: str) -> int:
        """Write it down."""
        self.kicked.append((username, cause))
        return 1

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        live_only: bool = False,
        expires_at: float | None = None,
        on_ack: Callable[[], None] | None = None,
    ) -> int:
        """Write it down."""
        self.sent.append(Sent(topic, _body(payload), qos, retain, on_ack))
        return 1

    def receive(self, topic: str, payload: bytes, qos: int = 1) -> Receipt:
        """A message comes in."""
        address = self.topics.parse(topic)
        assert address is not None
        receipt = self.ledger.receipt(qos=qos)
        self.router.deliver([Message(address, payload, self.clock(), receipt)])
        return receipt

    def bodies(self, topic: str) -> list[Any]:
        """What was sent on a topic, oldest first."""
        return [sent.body for sent in self.sent if sent.topic == topic]


def _body(payload: bytes) -> Any:
    try:
        return msgspec.json.decode(payload)
    except msgspec.DecodeError:
        return payload.decode()


@asynccontextmanager
async def house(
    url: str,
    rules: Rules | None = None,
    agent: type[Agent] | None = None,
    clock: Callable[[], float] = time.time,
    profiles: Profiles | None = None,
    unknown: Admission = Admission.ACCEPTED,
) -> AsyncIterator[House]:
    """A running house on a migrated database, which may hold an earlier one's data. `agent`: of all its devices."""
    async with AsyncExitStack() as undo:
        database = await Database.open(url)
        undo.push_async_callback(database.close)
        writer = Writer(database)
        await writer.start()
        undo.push_async_callback(writer.stop, 5.0)
        built = House(database, writer, rules or Rules(), agent, clock, profiles, unknown)
        await built.router.start()
        undo.push_async_callback(built.router.close, 5.0)
        undo.push_async_callback(built.router.stop, 5.0)
        yield built
    assert built.ledger.difference == 0
    assert built.ledger.in_flight == 0
