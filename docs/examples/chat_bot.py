"""An agent need not be a sensor's: this one answers text. A "device" is a person with an MQTT client."""

from __future__ import annotations

import re

import msgspec

from bridge import Agent, on


class Said(msgspec.Struct):
    text: str


class ChatBot(Agent):
    class State(msgspec.Struct):
        name: str = ""
        messages: int = 0
        reminder: str = ""

    @on.event("said")
    async def said(self, m: Said) -> None:
        self.state.messages += 1
        await self.say(self.answer(m.text.strip()))

    def answer(self, text: str) -> str:
        state = self.state
        if found := re.fullmatch(r"my name is (\w+)", text, re.IGNORECASE):
            state.name = found[1]
            return f"Hello {state.name}!"
        if found := re.fullmatch(r"remind me in (\d+) s(?:econds)?: (.+)", text, re.IGNORECASE):
            state.reminder = found[2]
            self.after(int(found[1]), self.remind)
            return "I will."
        if text.lower() == "who am i?":
            return f"You are {state.name}." if state.name else "You have not told me."
        return f"That was message {state.messages}. I know: my name is …, who am I?, remind me in 10 s: …"

    async def remind(self) -> None:
        await self.say(f"You wanted to be reminded: {self.state.reminder}")

    @on.command("say")
    async def told_to_say(self, text: str) -> None:
        await self.say(text)

    async def say(self, text: str) -> None:
        await self.publish(self.topic("says"), {"text": text})
