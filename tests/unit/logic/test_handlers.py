"""What an agent class may look like, and what is said about one that cannot work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bridge import Agent, every, on
from bridge.agents.handlers import Handlers


class Base(Agent):
    @on.telemetry()
    @on.event("alarm")
    async def reading(self, m: Any) -> None: ...

    @every(hours=1, minutes=30, seconds=5)
    async def tick(self) -> None: ...


class Derived(Base):
    async def reading(self, m: Any) -> None: ...

    @on.command("open")
    async def open(self, door: int = 1) -> None: ...


def test_a_subclass_inherits_what_its_methods_are_for() -> None:
    handlers = Handlers(Derived)
    assert set(handlers.readings) == {"default", "event/alarm"}
    assert handlers.every == {"tick": 5405.0}
    assert set(handlers.commands) == {"open"}
    assert {"tick"} <= handlers.timers


class TwoForOne(Agent):
    @on.telemetry()
    async def one(self, m: Any) -> None: ...

    @on.telemetry()
    async def two(self, m: Any) -> None: ...


class NoParameter(Agent):
    @on.telemetry()  # type: ignore[type-var]  # that is the mistake
    async def one(self) -> None: ...


class Unknown(Agent):
    @on.telemetry()
    async def one(self, m: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - that is the mistake


class Undecodable(Agent):
    @on.telemetry()
    async def one(self, m: dict[bytes, int] | list[int] | set[int]) -> None: ...


class NoDefault(Agent):
    class State(msgspec.Struct):
        count: int


class NamedArguments(Agent):
    @on.command("go")
    async def go(self, **anything: int) -> None: ...


@pytest.mark.parametrize(
    ("agent", "text"),
    [
        (TwoForOne, r"TwoForOne\.two: another method of TwoForOne is called for 'default' already"),
        (NoParameter, r"NoParameter\.one must have one parameter"),
        (Unknown, r"Unknown\.one: an annotation cannot be resolved at run time: name 'Nowhere'"),
        (Undecodable, r"Undecodable\.one: its parameter's type cannot be decoded"),
        (NoDefault, r"NoDefault\.State must be a msgspec\.Struct with a default for each field"),
        (NamedArguments, r"NamedArguments\.go: a command's arguments come by name"),
    ],
)
def test_what_is_wrong_with_a_class_is_said_with_the_method_s_name(agent: type[Agent], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        Handlers(agent)


def test_mistakes_that_show_when_the_class_is_written() -> None:
    with pytest.raises(TypeError, match="must be an `async def` method"):

        @on.presence  # type: ignore[type-var]  # that is the mistake
        def seen(self: Any, change: Any) -> None: ...

    with pytest.raises(ValueError, match="too often"):
        every(seconds=0.5)


def test_importing_the_agent_imports_neither_database_nor_broker_nor_web() -> None:
    code = (
        "import sys; from bridge import Agent, every, on, Command, RefusedError, Transition;"
        "print([m for m in ('sqlalchemy', 'amqtt', 'fastapi', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


WRONG = """
from bridge import Agent, Command, Transition, every, on
import msgspec

class Freezer(Agent):
    class State(msgspec.Struct):
        too_warm: int = 0

    @on.telemetry()
    async def reading(self, m: dict[str, float]) -> None:
        self.state.too_warm += 1
        self.state.too_wram += 1       # E: "State" has no attribute "too_wram"
        self.state.too_warm = "often"  # E: Incompatible types in assignment
        self.command("compressor")     # E: Value of type
        await self.publish("t", 1, qos="1")  # E: incompatible type "str"
        x: str = await self.offload(len, [1])  # E: Argument 1 to "offload"

    @on.presence
    async def seen(self, change: Transition) -> None: ...

    @on.presence                       # E: Value of type variable
    async def wrong(self, change: int) -> None: ...

    @every(minutes=5)                  # E: Value of type variable
    async def tick(self, when: float) -> None: ...

    @on.command("open")
    async def open(self, door: int, *, wide: bool = False) -> dict[str, int]:
        return {"door": door}

class Stateless(Agent):
    @on.telemetry()
    async def reading(self, m: object) -> None:
        print(self.state)              # E: Invalid self argument
"""


def test_mypy_in_strict_mode_knows_the_state_and_every_wrong_line_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "freezer.py"
    source.write_text(WRONG)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", source],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    found: dict[int, str] = {}
    for line in done.stdout.splitlines():
        _, number, kind, text = line.split(":", 3)
        if "error" in kind:
            found[int(number)] = text
    wanted = {n: line.split("# E: ")[1] for n, line in enumerate(WRONG.splitlines(), 1) if "# E: " in line}
    assert found.keys() == wanted.keys(), done.stdout
    for line_number, expected in wanted.items():
        assert expected in found[line_number]
