"""Agent classes by the names that settings give them."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from bridge.agents import discovery
from bridge.agents.discovery import find_agent
from bridge.errors import StartError

MODULE = """
from bridge import Agent, on

class Plain: ...

class Freezer(Agent):
    @on.telemetry()
    async def reading(self, m: dict) -> None: ...

class Wrong(Agent):
    @on.telemetry()
    async def reading(self) -> None: ...
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of agents."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_agents.py").write_text(MODULE)
    (tmp_path / "broken_agents.py").write_text("import nowhere_at_all")
    monkeypatch.delitem(sys.modules, "my_agents", raising=False)
    entries = EntryPoints([EntryPoint("freezer", "my_agents:Freezer", discovery.ENTRY_POINTS)])
    monkeypatch.setattr(discovery, "entry_points", lambda group: entries.select(group=group))
    return tmp_path


@pytest.mark.parametrize("name", ["my_agents:Freezer", "freezer"])
def test_by_module_and_class_or_as_registered(name: str) -> None:
    sys.path.append(str(Path.cwd()))
    assert find_agent(name).__name__ == "Freezer"


def test_the_working_directory_is_looked_through() -> None:
    assert find_agent("my_agents:Freezer").__module__ == "my_agents"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("my_agents:Frezer", r"my_agents\.py has no Frezer; did you mean 'Freezer'"),
        ("my_agents:Plain", r"which is no subclass of bridge\.Agent"),
        ("my_agents:Wrong", r"Wrong\.reading must have one parameter"),
        ("broken_agents:X", r"broken_agents cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("no_such_module:X", r"no_such_module cannot be imported"),
        ("freezr", r"no installed package has an agent 'freezr': .*; did you mean 'freezer'"),
    ],
)
def test_what_is_wrong_is_said(name: str, text: str) -> None:
    with pytest.raises(StartError, match=text):
        find_agent(name)
