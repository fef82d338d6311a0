"""What is done with a device's messages when nothing can be known of the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, final

from bridge.errors import RefusedError
from bridge.messages import Kind, Link, Message
from bridge.readings import Reading, decode
from bridge.receipts import Outcome, Receipt
from bridge.storage.deadletters import DeadLetter
from bridge.storage.writer import Writer

STORED: Final = (Kind.TELEMETRY, Kind.EVENT)
"""What can be stored without knowing anything of its device, where all devices are alike."""
MAX_HELD: Final = 10_000
"""Messages that are neither acknowledged nor given back: further ones are given back."""


def record(message: Message, writer: Writer) -> None:
    """Store a reading or an event, uncounted. Raises RefusedError."""
    address = message.address
    stream = address.stream if address.kind is Kind.TELEMETRY else "event/" + address.stream
    decoded = decode(message.payload, message.received_at)
    readings = [decoded] if isinstance(decoded, Reading) else decoded
    rows = [(address.device_id, stream, r.ts, message.received_at, r.message_id, r.payload) for r in readings]
    writer.add_readings(rows, message.receipt)


@final
class StandIn:
    """Takes the router's place while the database has not been reached since the start. Implements `messages.Intake`.

    Readings and events are stored. What an operator asks for is given back at once: his client is cut off, and learns
    that it was not taken. What else a device says (answers, reports) is neither acknowledged nor given back, as it
    would come again at once: the device's readings would never get by. Nobody's presence is known.
    """

    def __init__(self, writer: Writer, clock: Callable[[], float]) -> None:
        self.on_relief: Callable[[], None] | None = None
        self._writer = writer
        self._clock = clock
        self._held: list[Message] = []
        writer.on_relief = self._relieved

    @property
    def congested(self) -> bool:
        """Whether the writer holds as much as it may."""
        return self._writer.congested

    def _relieved(self) -> None:
        if self.on_relief is not None:
            self.on_relief()

    def deliver(self, messages: Sequence[Message]) -> None:
        """Store each message, hold it, or give it back."""
        for message in messages:
            self._take(message)

    def _take(self, message: Message) -> None:
        address, receipt = message.address, message.receipt
        if address.kind in STORED:
            try:
                record(message, self._writer)
            except RefusedError as error:
                self._keep(address.topic, address.device_id, message.payload, error.reason, str(error), receipt)
        elif address.kind is Kind.PONG:
            receipt.settle(Outcome.COMMITTED)
        elif receipt.qos == 0:
            receipt.settle(Outcome.DROPPED, "database_away")
        elif address.from_device and len(self._held) < MAX_HELD:
            self._held.append(message)
        else:
            receipt.settle(Outcome.RETRY)

    def refuse(self, topic: str, payload: bytes, reason: str, text: str, receipt: Receipt) -> None:
        """Keep a message that names no possible agent as a dead letter."""
        self._keep(topic, None, payload, reason, text, receipt)

    def attached(self, device_id: str, link: Link, *, listening: bool) -> None:
        """A connection speaks for a device: of no account until its state is known."""

    def detached(self, device_id: str, link: Link, cause: str) -> None:
        """A connection that spoke for a device is gone."""

    def give_back(self) -> None:
        """Give back what is held: whoever takes this place will be sent it again."""
        held, self._held = self._held, []
        for message in held:
            message.receipt.settle(Outcome.RETRY)

    def _keep(
        self, topic: str, device_id: str | None, payload: bytes, reason: str, text: str, receipt: Receipt
    ) -> None:
        letter = DeadLetter(
            at=self._clock(), topic=topic, device_id=device_id, reason=reason, error=text[:2000], payload=payload
        )
        self._writer.add_dead_letter(letter, receipt)
