"""Whether one device is there: its connections, its pings, and what is told of both."""

from __future__ import annotations

from typing import Final, Protocol, final

import msgspec

from bridge.agents.book import Host
from bridge.agents.services import Services
from bridge.errors import RefusedError
from bridge.messages import Link, Message
from bridge.presence import Presence, Status, Transition
from bridge.receipts import Outcome


class _Pong(msgspec.Struct):
    id: str = ""


_pongs: Final = msgspec.json.Decoder(_Pong)


class Subject(Protocol):
    """The device that is watched."""

    id: str

    def save(self) -> None:
        """Hand the state to the writer."""

    def presence_changed(self, transition: Transition) -> None:
        """Its status is another one now."""


@final
class Liveness:
    """One device's connections and presence. Every change of status is stored, published and counted here."""

    __slots__ = ("_counted_as", "_device", "_host", "_links", "_services", "presence", "round_trip")

    def __init__(self, device: Subject, presence: Presence, services: Services, host: Host) -> None:
        self._device = device
        self._services = services
        self._host = host
        self._links: dict[Link, bool] = {}
        self._counted_as = presence.status
        self.presence = presence
        self.round_trip: float | None = None

    # ------------------------------------------------------------------ connections

    @property
    def connected(self) -> bool:
        """Whether any connection speaks for the device."""
        return bool(self._links)

    @property
    def listening(self) -> bool:
        """Whether the device can be sent something now."""
        return any(self._links.values())

    def attached(self, link: Link, *, listening: bool) -> bool:
        """A connection speaks for the device; whether it is one that begins to listen now."""
        listened = self._links.get(link, False)
        self._links[link] = listening or listened
        self._transition(self.presence.heard(self._services.clock(), "connect"))
        self._host.call_before(self.next_check())
        return listening and not listened

    def detached(self, link: Link, cause: str) -> None:
        """A connection that spoke for the device is gone."""
        if self._links.pop(link, None) is None or self._links:
            return
        self._transition(self.presence.gone(self._services.clock(), cause))

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

    def take_pong(self, message: Message) -> None:
        """The device answers a ping. Raises RefusedError."""
        try:
            _pongs.decode(message.payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RefusedError("bad_pong", f"a pong is {{id}}: {error}") from error
        if self.presence.pinged_at:
            self.round_trip = message.received_at - self.presence.pinged_at
        message.receipt.settle(Outcome.COMMITTED)

    # ------------------------------------------------------------------ time

    def next_check(self) -> float:
        """When `tick` is wanted next, in Unix seconds; infinity if nothing can be due."""
        if not self._links:
            return float("inf")
        return self.presence.next_check(self._services.rules.ping_interval)

    def tick(self, now: float) -> None:
        """Ping a device that has been silent for too long."""
        rules = self._services.rules
        if self._links and self.presence.ping_due(now, rules.ping_interval):
            self._transition(self.presence.pinged(now, rules.ping_misses))
            self._services.publish_json(self._device.id, "ping", {"id": format(int(now * 1000), "x")})

    def _transition(self, transition: Transition | None) -> None:
        if transition is None:
            return
        status, cause, epoch, at = transition
        services = self._services
        census = services.census
        census.transitions += 1
        census.devices[status.value] += 1
        census.devices[self._counted_as.value] -= 1
        self._counted_as = status
        services.writer.add_presence(self._device.id, epoch, status.value, cause, at)
        body = {"status": status.value, "cause": cause, "epoch": epoch, "at": at}
        services.publish_json(self._device.id, "presence", body, qos=1, retain=True)
        self._device.save()  # in the same batch as the transition, so that no epoch is ever given twice
        self._device.presence_changed(transition)
