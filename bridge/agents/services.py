"""What every device's agent is handed: the writer, the broker's publish, the clock, the rules."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, final

import msgspec
import structlog

from bridge.agents.agent import Agent
from bridge.agents.feed import Feed
from bridge.agents.handlers import Handlers
from bridge.agents.limits import Limit, Pacer
from bridge.agents.logic import LogicRules
from bridge.agents.offload import Offload
from bridge.agents.timers import TimerWheel
from bridge.agents.wakeups import WakeUps
from bridge.commands import CommandStatus
from bridge.histogram import LONG, Histogram
from bridge.messages import Kind, Message, Publish
from bridge.profiles import Profile, Profiles
from bridge.receipts import Receipt
from bridge.registry import Admission
from bridge.storage.agents import AgentLoader
from bridge.storage.deadletters import DeadLetter
from bridge.storage.devices import DeviceLoader
from bridge.storage.loader import Loader
from bridge.storage.telemetry import KnownIds
from bridge.storage.twins import fetch
from bridge.storage.writer import Writer
from bridge.topics import Topics
from bridge.tracing import Tracing
from bridge.twin import Limits, Twin

log = structlog.get_logger(__name__)

_encode: Final = msgspec.json.Encoder().encode

REFUSALS_LOGGED: Final = 20
"""Lines per second about refused messages: a device that sends rubbish at full speed must not slow the others."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How agents behave; times in seconds."""

    ping_interval: float = 30.0
    ping_misses: int = 3
    ping_rate: float = 500.0
    wake_grace: float = 30.0
    twin_limits: Limits = field(default_factory=Limits)
    sleep_after: float = 60.0
    evict_after: float = 600.0
    mailbox_limit: int = 10_000
    restarts: int = 5
    restart_window: float = 60.0
    snapshot_interval: float = 5.0
    command_ttl: float = 60.0
    command_max_ttl: float = 86_400.0
    command_attempts: int = 3
    command_retry_after: float = 10.0
    handler_timeout: float = 30.0
    offload_workers: int = 0
    """Processes, and as many threads, for work that must not hold up the event loop; 0: by the processors."""


@final
class Census:
    """How many devices are in which status and how many commands reached which, kept as they change."""

    __slots__ = (
        "awake", "command_steps", "commands", "devices", "pings", "refused", "restarts", "transitions", "twins",
    )  # fmt: skip

    def __init__(self) -> None:
        self.devices: Counter[str] = Counter()
        self.commands: Counter[str] = Counter()
        self.command_steps: Final = {
            status.value: Histogram(LONG) for status in CommandStatus if status is not CommandStatus.QUEUED
        }
        """Seconds from the acceptance of a command to each status that it reached."""
        self.refused: Counter[str] = Counter()
        self.restarts = 0
        self.pings = 0
        self.twins: Counter[str] = Counter()
        """Changes of twins by part, and patches of desired that were rejected."""
        self.transitions: Counter[str] = Counter()
        """Changes of presence by cause."""
        self.awake = 0
        """Agents with a coroutine."""


def alike(profiles: Profiles, unknown: Admission) -> bool:
    """Whether a reading is stored in the same way whichever device it comes from: then nothing that is stored of a
    device need be known for it. `unknown`: how devices are taken that are heard of for the first time."""
    return unknown is Admission.ACCEPTED and all(
        profile.plain and not profile.rules and not profile.agent for profile in profiles
    )


@final
class Services:
    """Shared by all devices of one bridge."""

    __slots__ = (
        "_refusals_logged",
        "_waiters",
        "agent_loader",
        "all_alike",
        "audit_lines",
        "census",
        "clock",
        "epoch_floor",
        "feed",
        "known_ids",
        "loader",
        "logic_classes",
        "logic_rules",
        "loop",
        "offload",
        "pings",
        "profiles",
        "publish",
        "rollout_news",
        "rules",
        "topics",
        "tracing",
        "twins",
        "unknown",
        "wakeups",
        "wheel",
        "writer",
    )

    def __init__(
        self,
        *,
        writer: Writer,
        loader: DeviceLoader,
        topics: Topics,
        rules: Rules,
        clock: Callable[[], float],
        profiles: Profiles | None = None,
        agents: Mapping[str, type[Agent]] | None = None,
        unknown: Admission = Admission.ACCEPTED,
        tracing: Tracing | None = None,
        audit_lines: int = 100_000,
    ) -> None:
        """Without `profiles` all devices are alike, as `rules` has it. `agents` are the classes of device logic, by
        what `Profile.agent` calls them. `unknown`: how a device is taken that is heard of for the first time."""
        self.writer = writer
        self.loader = loader
        self.agent_loader: Final = AgentLoader(loader.database)
        self.known_ids: Final = KnownIds(loader.database)
        self.topics = topics
        self.rules = rules
        self.clock = clock
        self.tracing: Final = tracing or Tracing()
        self.profiles: Final = profiles or Profiles((_profile(rules),))
        self.unknown: Final = unknown
        self.audit_lines: Final = audit_lines
        """Lines of the audit trail that are kept."""
        self.loop = asyncio.get_running_loop()
        self.wheel = TimerWheel(self.loop.time)
        self.census = Census()
        self.wakeups: Final = WakeUps(self.loop)
        self.offload = Offload(rules.offload_workers)
        self.logic_classes = {name: (agent, Handlers(agent)) for name, agent in (agents or {}).items()}
        """By `Profile.agent`."""
        self.all_alike: Final = alike(self.profiles, unknown)
        self.logic_rules = LogicRules(rules.handler_timeout, rules.restarts, rules.restart_window, rules.mailbox_limit)
        self.feed: Final = Feed(writer, clock)
        self.epoch_floor = 0
        """Every epoch of presence must be larger."""
        self.twins: Final[Loader[str, Twin]] = Loader(loader.database, fetch)
        self.pings = Pacer(rules.ping_rate)
        self.publish: Publish
        self.rollout_news: Callable[[str, str, CommandStatus], None] | None = None
        """Called when a command of a rollout has ended, with the ids of the two."""
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        """By command id: who waits for its next status."""
        self._refusals_logged = Limit(REFUSALS_LOGGED, 1.0)

    def publish_json(self, device_id: str, name: str, body: Any, *, qos: int = 0, retain: bool = False) -> None:
        """Publish a JSON object on one of a device's topics."""
        if self.feed.listening:
            self.feed.published(device_id, name, body)
        self.publish(self.topics.of(device_id, name), _encode(body), qos=qos, retain=retain)

    def refuse(
        self,
        topic: str,
        payload: bytes,
        reason: str,
        text: str,
        receipt: Receipt | None,
        *,
        device_id: str | None = None,
        kind: Kind | None = None,
    ) -> None:
        """Keep a message as a dead letter, say so in the log, and tell the device if it is the sender."""
        now = self.clock()
        self.census.refused[reason] += 1
        if self._refusals_logged.allow(now):
            log.warning(
                "message refused",
                topic=topic[:200],
                reason=reason,
                detail=text[:500],
                size=len(payload),
                lines_left_out=self._refusals_logged.passed_over,
            )
            self._refusals_logged.passed_over = 0
        letter = DeadLetter(at=now, topic=topic, device_id=device_id, reason=reason, error=text[:2000], payload=payload)
        self.writer.add_dead_letter(letter, receipt)
        if self.feed.listening:
            self.feed.refused(letter)
        if device_id is not None and kind is not None and kind.from_device:
            body = {"reason": reason, "error": text[:500], "topic": topic}
            self.publish_json(device_id, "error", body)

    def refuse_message(self, message: Message, reason: str, text: str) -> None:
        """Keep a message for a device's agent as a dead letter."""
        address = message.address
        self.refuse(
            address.topic,
            message.payload,
            reason,
            text,
            message.receipt,
            device_id=address.device_id,
            kind=address.kind,
        )

    def command_changed(self, command_id: str) -> None:
        """Wake those who wait for news of a command."""
        for waiter in self._waiters.pop(command_id, ()):
            if not waiter.done():
                waiter.set_result(None)

    @contextmanager
    def news_of(self, command_id: str) -> Iterator[asyncio.Future[None]]:
        """A future that is done when the command's status has changed."""
        waiter = self.loop.create_future()
        self._waiters.setdefault(command_id, []).append(waiter)
        try:
            yield waiter
        finally:
            waiting = self._waiters.get(command_id, [])
            if waiter in waiting:
                waiting.remove(waiter)
                if not waiting:
                    del self._waiters[command_id]


def _profile(rules: Rules) -> Profile:
    return Profile(
        ping_interval=rules.ping_interval,
        ping_misses=rules.ping_misses,
        command_ttl=rules.command_ttl,
        command_max_ttl=rules.command_max_ttl,
        command_attempts=rules.command_attempts,
        command_retry_after=rules.command_retry_after,
    )
