"""A cold store that may not get warm: it commands the compressor, and raises an alarm when that does not help."""

from __future__ import annotations

import msgspec

from bridge import Agent, Command, every, on

LIMIT = -15.0
ALARM_AFTER = 300.0


class Reading(msgspec.Struct):
    temperature: float


class ColdChain(Agent):
    class State(msgspec.Struct):
        temperature: float | None = None
        warm_since: float | None = None
        cooling: bool = False
        heard_at: float = 0.0

    @on.telemetry()
    async def measured(self, m: Reading) -> None:
        state = self.state
        state.temperature = m.temperature
        state.heard_at = self.now
        if m.temperature <= LIMIT:
            state.warm_since = None
            self.cancel(self.still_warm)
            return
        if state.warm_since is None:
            state.warm_since = self.now
            self.after(ALARM_AFTER, self.still_warm)
        if not state.cooling:
            state.cooling = True
            await self.command("compressor", {"on": True}, ttl=30)

    @on.response("compressor")
    async def compressor(self, command: Command) -> None:
        if command.status != "succeeded":
            self.state.cooling = False  # tried again with the next warm reading
            await self.alarm(f"compressor: {command.error or command.status}")

    async def still_warm(self) -> None:
        await self.alarm(f"warmer than {LIMIT:g} °C for {ALARM_AFTER / 60:g} minutes")

    @every(minutes=5)
    async def watchdog(self) -> None:
        if self.state.heard_at and self.now - self.state.heard_at > 600:
            await self.alarm("no reading for ten minutes")

    @on.command("defrost")
    async def defrost(self, minutes: int) -> dict[str, float]:
        """Operators ask this agent, not the device: it knows what defrosting means here."""
        if self.state.warm_since is not None:
            raise RuntimeError("too warm already")
        await self.command("compressor", {"on": False}, ttl=30)
        self.state.cooling = False
        return {"until": self.now + minutes * 60}

    async def alarm(self, text: str) -> None:
        self.log.warning("alarm", text=text)
        await self.publish(self.topic("alarm"), {"text": text, "at": self.now}, retain=True)
