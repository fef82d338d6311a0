"""An agent class in the harness: what its handlers are called with, and that what they do happens whole or not."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from bridge import Agent, Command, RefusedError, Transition, every, on
from bridge.agents.effects import StoredState
from bridge.testing import harness


class Reading(msgspec.Struct):
    temperature: float


class Wanted(msgspec.Struct):
    target: float = -18.0


class Freezer(Agent):
    class State(msgspec.Struct):
        too_warm: int = 0
        checks: int = 0
        seen: list[str] = []
        target: float = -18.0

    @on.telemetry()
    async def reading(self, m: Reading) -> None:
        if m.temperature > -10:
            self.state.too_warm += 1
            await self.command("compressor", {"on": True}, ttl=30)
        if m.temperature > 100:
            raise ValueError("the sensor is broken")
        if m.temperature < -273.15:
            raise RefusedError("impossible", "below absolute zero")

    @on.event("door")
    async def door(self, m: dict[str, bool]) -> None:
        self.state.seen.append(f"door {m['open']}")
        if m["open"]:
            self.after(60, self.still_open)
        else:
            self.cancel(self.still_open)

    async def still_open(self) -> None:
        await self.publish(self.topic("alarm"), {"door": "open"}, retain=True)

    @on.presence
    async def came_or_went(self, change: Transition) -> None:
        self.state.seen.append(change.status.value)

    @on.response("compressor")
    async def answered(self, command: Command) -> None:
        self.state.seen.append(f"{command.name} {command.status.value} {command.error}")

    @on.desired
    async def wanted(self, desired: Wanted) -> None:
        self.state.target = desired.target
        await self.report({"target": desired.target, "by": {"agent": True}})

    @every(minutes=5)
    async def check(self) -> None:
        self.state.checks += 1

    @on.command("defrost")
    async def defrost(self, minutes: int, *, gently: bool = True) -> dict[str, Any]:
        if minutes > 60:
            raise ValueError("that is too long")
        self.state.seen.append("defrosted")
        return {"minutes": minutes, "gently": gently}


async def test_a_reading_is_decoded_and_what_the_handler_did_is_seen() -> None:
    async with harness(Freezer, device_id="f1") as device:
        await device.telemetry({"temperature": -20})
        assert device.commands == []
        await device.telemetry([{"temperature": -3}, {"temperature": -2}])
        assert device.commands == [("compressor", {"on": True}, 30)] * 2
        assert device.state.too_warm == 2


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ({"temperature": "cold"}, "Expected `float`, got `str` - at `$.temperature`"),
        ([{"temperature": -3}, {}], "element 1: Object missing required field `temperature`"),
    ],
)
async def test_a_payload_that_does_not_fit_is_refused_with_the_path_and_nothing_happens(
    payload: Any, text: str
) -> None:
    async with harness(Freezer) as device:
        with pytest.raises(RefusedError, match=text.replace("$", r"\$").replace(".", r"\.")) as caught:
            await device.telemetry(payload)
        assert caught.value.reason == "wrong_type"
        assert (device.commands, device.state.too_warm) == ([], 0)


@pytest.mark.parametrize(("temperature", "error"), [(101, ValueError), (-300, RefusedError)])
async def test_a_handler_that_raises_has_done_nothing(temperature: float, error: type[Exception]) -> None:
    async with harness(Freezer) as device:
        await device.telemetry({"temperature": -3})
        with pytest.raises(error):
            await device.telemetry([{"temperature": -3}, {"temperature": temperature}])
        await device.telemetry({"temperature": -3})
        assert (len(device.commands), device.state.too_warm) == (2, 2)


async def test_the_same_reading_again_causes_nothing() -> None:
    async with harness(Freezer) as device:
        for _ in range(2):
            await device.telemetry({"id": "a", "temperature": -3})
        await device.telemetry([{"id": "a", "temperature": -3}, {"id": "b", "temperature": -3}])
        assert (len(device.commands), device.state.too_warm) == (2, 2)


async def test_timers_once_and_again_survive_a_restart() -> None:
    async with harness(Freezer, device_id="f1") as device:
        await device.event("door", {"open": True})
        await device.advance(seconds=50)
        await device.restart()
        await device.advance(seconds=9)
        assert device.published == []
        await device.advance(seconds=1)
        assert device.published == [("devices/f1/alarm", {"door": "open"}, 1, True)]
        await device.advance(minutes=9)
        assert (device.state.checks, len(device.published)) == (2, 1)


async def test_a_timer_that_is_cancelled_is_not_called() -> None:
    async with harness(Freezer) as device:
        await device.event("door", {"open": True})
        await device.event("door", {"open": False})
        await device.advance(minutes=2)
        assert device.published == []


async def test_presence_desired_and_what_became_of_a_command() -> None:
    async with harness(Freezer) as device:
        await device.presence("online")
        await device.desired({"target": -22})
        await device.telemetry([{"temperature": -3}, {"temperature": -3}])
        await device.respond("compressor", error="jammed")
        await device.advance(seconds=30)
        assert device.state.seen == ["online", "compressor failed jammed", "compressor expired None"]
        assert device.state.target == -22
        assert device.twin.reported == {"target": -22, "by": {"agent": True}}
        with pytest.raises(LookupError):
            await device.respond("compressor")


async def test_the_agent_carries_out_a_command_and_checks_its_arguments() -> None:
    async with harness(Freezer) as device:
        assert await device.command("defrost", {"minutes": 5}) == {"minutes": 5, "gently": True}
        with pytest.raises(RefusedError, match="Expected `int`"):
            await device.command("defrost", {"minutes": "five"})
        with pytest.raises(RefusedError, match="unknown field `hours`"):
            await device.command("defrost", {"minutes": 5, "hours": 1})
        with pytest.raises(RefusedError, match="missing required field `minutes`"):
            await device.command("defrost")
        with pytest.raises(ValueError, match="too long"):
            await device.command("defrost", {"minutes": 90})
        with pytest.raises(LookupError):
            await device.command("reboot")
        assert device.state.seen == ["defrosted"]


class Versioned(Agent):
    state_version = 2

    class State(msgspec.Struct):
        counts: dict[str, int] = {}

    @classmethod
    def migrate(cls, version: int, raw: dict[str, Any]) -> dict[str, Any]:
        return {"counts": {"all": raw["count"]}}

    @on.telemetry()
    async def reading(self, m: Any) -> None:
        self.state.counts["all"] += 1


async def test_a_state_of_an_older_version_is_migrated() -> None:
    async with harness(Versioned, stored=StoredState(1, '{"count":7}')) as device:
        await device.telemetry({})
        assert device.stored == StoredState(2, '{"counts":{"all":8}}')


@pytest.mark.parametrize(
    "stored",
    [StoredState(1, '{"cuont":7}'), StoredState(2, '{"counts":{"all":"x"}}'), StoredState(3, '{"counts":{"all":1}}')],
)
async def test_a_state_that_cannot_be_read_is_kept_and_the_agent_does_not_start(stored: StoredState) -> None:
    async with harness(Versioned, stored=stored) as device:
        with pytest.raises(RefusedError) as caught:
            await device.telemetry({})
        assert caught.value.reason == "bad_state"
        assert device.stored == stored


class Slow(Agent):
    class State(msgspec.Struct):
        count: int = 0
        started: int = 0

    async def start(self) -> None:
        self.state.started += 1

    @on.telemetry()
    async def reading(self, m: dict[str, Any]) -> None:
        self.state.count += 1
        await self.command("begun")
        if m.get("hang"):
            await asyncio.Event().wait()
        if m.get("late"):
            self.late = asyncio.ensure_future(self._later())

    async def _later(self) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await self.command("late")

    @on.event("endless")
    async def endless(self, m: Any) -> None:
        while True:
            await self.command("again")

    @on.event("exit")
    async def leave(self, m: Any) -> None:
        raise SystemExit(3)

    @on.event("count")
    async def counted(self, m: Any) -> None:
        await self.publish("anything/at/all", b"\xff\x00")
        await self.publish("anything", "text", qos=0)


async def test_a_handler_that_takes_too_long_is_cancelled_and_named() -> None:
    async with harness(Slow, handler_timeout=0.02) as device:
        with pytest.raises(TimeoutError, match=r"not done within 0\.02 s"):
            await device.telemetry({"hang": True})
        await device.telemetry({})
        assert (device.state.count, len(device.commands)) == (1, 1)


async def test_an_agent_is_started_whenever_it_is_built() -> None:
    async with harness(Slow) as device:
        await device.telemetry([{}, {}])
        await device.restart()
        await device.telemetry({})
        assert device.state == Slow.State(count=3, started=2)


async def test_effects_come_from_a_running_handler_and_are_limited() -> None:
    async with harness(Slow) as device:
        await device.telemetry({"late": True})
        late = device._logic._agent.late  # type: ignore[union-attr]  # the test looks into the agent
        with pytest.raises(RuntimeError, match="only while one of its handlers is running"):
            await late
        with pytest.raises(RuntimeError, match="more than 1000"):
            await device.event("endless", {})
        with pytest.raises(SystemExit):
            await device.event("exit", {})
        await device.event("count", {})
        assert [p.payload for p in device.published] == ["\ufffd\0", "text"]
        assert [c.name for c in device.commands] == ["begun"]


async def test_an_agent_that_fails_too_often_rests() -> None:
    async with harness(Freezer) as device:
        for _ in range(5):
            with pytest.raises(ValueError, match="broken"):
                await device.telemetry({"temperature": 101})
        with pytest.raises(RefusedError) as caught:
            await device.telemetry({"temperature": -3})
        assert caught.value.reason == "agent_failed"
        await device.advance(seconds=61)
        await device.telemetry({"temperature": -3})
        assert len(device.commands) == 1
