"""A message on its way from the broker to a device's agent."""

from __future__ import annotations

import enum
from typing import final

from bridge.receipts import Receipt


class Kind(enum.Enum):
    """What a bridge topic carries. The value is the part of the topic after the device id."""

    TELEMETRY = "telemetry"
    EVENT = "event"
    COMMAND = "command"
    RESPONSE = "command/response"
    PONG = "pong"
    DESIRED = "state/desired"
    REPORTED = "state/reported"


@final
class Address:
    """Where a bridge topic leads: made once per topic and connection, then reused for every message."""

    __slots__ = ("device_id", "kind", "stream", "topic")

    def __init__(self, topic: str, device_id: str, kind: Kind, stream: str = "") -> None:
        self.topic = topic
        self.device_id = device_id
        self.kind = kind
        self.stream = stream
        """The telemetry stream or the kind of event; empty for the other kinds."""


@final
class Message:
    """One message for a device's agent, with the receipt that the agent must see settled."""

    __slots__ = ("address", "payload", "receipt", "received_at")

    def __init__(self, address: Address, payload: bytes, received_at: float, receipt: Receipt) -> None:
        self.address = address
        self.payload = payload
        self.received_at = received_at
        """Unix seconds, the bridge's clock."""
        self.receipt = receipt
