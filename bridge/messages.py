"""A message on its way from the broker to a device's agent, and the two doors between broker and agents."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, final

import msgspec

from bridge.receipts import Receipt

if TYPE_CHECKING:
    from bridge.mapping import Rule


class Kind(enum.Enum):
    """What a bridge topic carries. The value is the part of the topic after the device id."""

    TELEMETRY = "telemetry"
    EVENT = "event"
    COMMAND = "command"
    RESPONSE = "command/response"
    PONG = "pong"
    DESIRED = "state/desired"
    REPORTED = "state/reported"
    PRESENCE = "presence"
    """What a foreign device says of itself, see `bridge.mapping`; of others the bridge says it."""

    @property
    def from_device(self) -> bool:
        """Whether the device itself is the sender; the others come from operators."""
        return self not in (Kind.COMMAND, Kind.DESIRED)


class Sender(NamedTuple):
    """The client that an operator's message came from."""

    username: str | None
    client_id: str
    host: str
    """Where it was connected from; empty if it is gone already."""


@final
class Address:
    """Where a bridge topic leads: made once per topic and connection, then reused for every message."""

    __slots__ = ("device_id", "from_device", "kind", "plain", "replay", "rule", "sender", "stream", "topic")

    def __init__(
        self, topic: str, device_id: str, kind: Kind, stream: str = "", replay: str = "", rule: Rule | None = None
    ) -> None:
        self.topic = topic
        self.device_id = device_id
        self.kind = kind
        self.from_device = kind.from_device and not replay
        """Whether the device itself has just sent it: a sign of life."""
        self.stream = stream
        """The telemetry stream or the kind of event; empty for the other kinds."""
        self.replay = replay
        """For a dead letter that is handed in again, what makes a second hand-over of it a duplicate; else empty."""
        self.sender: Sender | None = None
        """Who asks for it, where it is not the device itself: for the audit trail."""
        self.rule = rule
        """How a foreign device's payload is to be read; None for the bridge's own topics."""
        self.plain = kind is Kind.TELEMETRY and not replay and rule is None
        """Whether it carries readings in the bridge's own form, from the device itself: nearly every message."""


@final
class Message(msgspec.Struct, eq=False):
    """One message for a device's agent, with the receipt that the agent must see settled."""

    address: Address
    payload: bytes
    received_at: float
    """Unix seconds, the bridge's clock."""
    receipt: Receipt


class Link(Protocol):
    """A device's live connection, as the broker shows it to the agents. Compared by identity."""

    client_id: str

    def kick(self, cause: str) -> None:
        """Close the connection; `cause` comes back through `Intake.detached`."""


class Intake(Protocol):
    """What the broker hands over to: implemented by the router in front of the agents. No method blocks or raises."""

    @property
    def congested(self) -> bool:
        """True while more is unsettled than the writer may hold. The broker then reads from no connection that has
        just delivered something, until it is called back through `on_relief`."""

    on_relief: Callable[[], None] | None
    """Set by the broker: called when `congested` has become False again."""

    def deliver(self, messages: Sequence[Message]) -> None:
        """Take messages for one device, at least one, in their order. Their receipts will be settled later, from the
        same event loop."""

    def refuse(self, topic: str, payload: bytes, reason: str, text: str, receipt: Receipt) -> None:
        """Keep a message that no agent can take as a dead letter: `reason` is a word, `text` says what exactly."""

    def attached(self, device_id: str, link: Link, *, listening: bool) -> None:
        """`link` speaks for the device: it has published as the device (`listening` False) or has subscribed, without
        wildcards, to a topic meant for the device (`listening` True, and again for each further such topic)."""

    def detached(self, device_id: str, link: Link, cause: str) -> None:
        """`link` is gone. `cause`: disconnect, keepalive, takeover, will, error, kicked or shutdown. `will` is a
        connection that broke, without any of the other reasons, and whose client had left a will."""


class Publish(Protocol):
    """What the agents send through: implemented by the broker."""

    def __call__(
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
        """Publish to every matching subscriber, at the lower of `qos` and the subscription's QoS.

        `live_only`: hand it to connected clients only, nothing is queued for absent sessions. `expires_at` (Unix
        seconds): not delivered or redelivered after that time. `on_ack` is called once, when a client whose
        subscription names `topic` without wildcards has acknowledged a QoS 1 or 2 delivery.
        Returns to how many connected clients with such a subscription (without wildcards) it was handed.
        """
