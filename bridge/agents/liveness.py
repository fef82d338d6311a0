"""Whether one device is there: its connections, its pings, and what is told of both."""

from __future__ import annotations

from typing import Any, Final, Protocol, final

import msgspec

from bridge.agents.host import Host
from bridge.agents.links import Links
from bridge.agents.services import Services
from bridge.errors import RefusedError
from bridge.messages import Link, Message
from bridge.presence import Presence, RoundTrips, Status, Transition
from bridge.profiles import Profile
from bridge.receipts import Outcome

PINGS_KEPT: Final = 8
"""Pings of one device that may still be answered."""


class _Pong(msgspec.Struct):
    id: str = ""


_pongs: Final = msgspec.json.Decoder(_Pong)


class Subject(Protocol):
    """The device that is watched."""

    id: str
    profile: Profile

    def save(self) -> None:
        """Hand the state to the writer."""

    def presence_changed(self, transition: Transition) -> None:
        """Its status is another one now."""


@final
class Liveness:
    """One device's connections and presence. Every change of status is stored, published and counted here."""

    __slots__ = ("_device", "_host", "_links", "_pings", "_services", "counted_as", "presence", "round_trips")

    def __init__(self, device: Subject, presence: Presence, services: Services, host: Host) -> None:
        self._device = device
        self._services = services
        self._host = host
        self._links = Links()
        self.counted_as = presence.status
        self._pings: tuple[float, ...] = ()
        """When the pings were sent that may still be answered."""
        self.presence = presence
        self.round_trips: RoundTrips | None = None
        """None before the first pong."""

    # ------------------------------------------------------------------ connections

    @property
    def needed(self) -> bool:
        """Whether there is something to watch: a connection, or a sleep that will end."""
        return bool(self._links) or self.presence.asleep_until > 0

    @property
    def listening(self) -> bool:
        """Whether the device can be sent something now."""
        return self._links.listening

    def attached(self, link: Link, *, listening: bool) -> bool:
        """A connection speaks for the device; whether it is one that begins to listen now."""
        now = self._services.clock()
        listened = self._links.put(link, listens=listening)
        self._transition(self.presence.connected(now) if listened is None else self.presence.heard(now))
        self._host.call_before(self.next_check())
        return listening and not listened

    def detached(self, link: Link, cause: str) -> None:
        """A connection that spoke for the device is gone."""
        if not self._links.take(link) or self._links:
            return
        self._pings = ()
        self._transition(self.presence.gone(self._services.clock(), cause))
        self._host.call_before(self.next_check())

    # ------------------------------------------------------------------ signs of life

    def heard(self, at: float) -> None:
        """The device has sent something."""
        presence = self.presence
        if presence.status is Status.ONLINE:
            presence.heard_at = at
            presence.misses = 0
        elif self._links:
            self._transition(presence.heard(at))
        else:
            # Its connection is closed already: the message is late, the device is still gone.
            presence.heard_at = at

    def sleeps(self, at: float, seconds: float) -> None:
        """The device has announced to sleep for so long."""
        self._transition(self.presence.slept(at, seconds))
        self._host.call_before(self.next_check())

    def reported(self, at: float, *, there: bool) -> None:
        """A foreign device, or whoever speaks for it, says that it is there, or that it is not."""
        self._transition(self.presence.heard(at, "reported") if there else self.presence.gone(at, "reported"))

    def take_pong(self, message: Message) -> None:
        """The device answers a ping. A pong whose `id` is that of no ping (it came late, or twice) is a sign of life
        like any other, and measures nothing. Raises RefusedError."""
        try:
            pong = _pongs.decode(message.payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RefusedError("bad_pong", f"a pong is {{id}}: {error}") from error
        for sent_at in self._pings:
            if pong.id == _ping_id(sent_at):
                self._pings = tuple(at for at in self._pings if at != sent_at)
                if self.round_trips is None:
                    self.round_trips = RoundTrips()
                self.round_trips.add(max(0.0, message.received_at - sent_at))
                break
        message.receipt.settle(Outcome.COMMITTED)

    # ------------------------------------------------------------------ time

    def next_check(self) -> float:
        """When `tick` is wanted next, in Unix seconds; infinity if nothing can be due."""
        presence = self.presence
        grace = self._services.rules.wake_grace
        if self._links:
            return presence.next_check(self._patience(), grace)
        return presence.asleep_until + grace if presence.asleep_until else float("inf")

    def tick(self, now: float) -> None:
        """Ping a device that has been silent for too long, when its turn comes; miss one that should be awake."""
        presence = self.presence
        grace = self._services.rules.wake_grace
        if not self._links:
            self._transition(presence.overslept(now, grace))
        elif not presence.ping_due(now, self._patience(), grace):
            presence.ping_at = 0.0
        else:
            if not presence.ping_at:
                presence.ping_at = self._services.pings.reserve(now)
            if presence.ping_at <= now:
                self._ping(now, self._device.profile.ping_misses)

    def _patience(self) -> float:
        return self.presence.patience(self._device.id, self._device.profile.ping_interval)

    def _ping(self, now: float, ping_misses: int) -> None:
        self._transition(self.presence.pinged(now, ping_misses))
        self._pings = (*self._pings[1 - PINGS_KEPT :], now)
        self._services.census.pings += 1
        self._services.publish_json(self._device.id, "ping", {"id": _ping_id(now)})

    def _transition(self, transition: Transition | None) -> None:
        if transition is None:
            return
        status, cause, epoch, at = transition
        services = self._services
        census = services.census
        census.transitions[cause] += 1
        census.devices[status.value] += 1
        census.devices[self.counted_as.value] -= 1
        self.counted_as = status
        services.writer.add_presence(self._device.id, epoch, status.value, cause, at)
        body: dict[str, Any] = {"status": status.value, "cause": cause, "epoch": epoch, "at": at}
        if self.presence.asleep_until:
            body["until"] = self.presence.asleep_until
        services.publish_json(self._device.id, "presence", body, qos=1, retain=True)
        self._device.save()  # in the same batch as the transition, so that no epoch is ever given twice
        self._device.presence_changed(transition)


def _ping_id(sent_at: float) -> str:
    return format(int(sent_at * 1000), "x")
