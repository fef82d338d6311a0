"""The agent that a programmer subclasses: what a device means, as opposed to what is done for every device."""

from __future__ import annotations

from bridge.readings import Reading


class Agent:
    """Device logic. One instance per awake device; its methods are called one at a time, in order.

    Whatever a method raises concerns this device alone: the message becomes a dead letter with the error's text, and
    the agent is built anew. `RefusedError` refuses the message without a rebuild.
    """

    __slots__ = ("device_id",)

    def __init__(self, device_id: str) -> None:
        self.device_id = device_id

    def on_reading(self, stream: str, reading: Reading) -> None:
        """A reading has come in and will be stored when this returns. Must not block: it runs on the event loop."""
