"""The house rules that a reader relies on: who may import whom, and who may look at the environment."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUSE = ROOT / "bridge"

ONLY_IN = {
    "amqtt": ("bridge.broker",),
    "aiomqtt": ("bridge.cli", "bridge.simulate", "bridge.sinks"),
    "fastapi": ("bridge.http",),
    "starlette": ("bridge.http",),
    "typer": ("bridge.cli",),
    "alembic": ("bridge.storage",),
    "aiosqlite": ("bridge.storage",),
    "asyncpg": ("bridge.storage",),
    "tenacity": ("bridge.sinks", "bridge.storage"),
    "cronsim": ("bridge.schedule",),
    "pydantic_settings": ("bridge.settings",),
}
"""A library → the only rooms that import it: what must be looked at when that library changes."""

ENVIRONMENT_READERS = ("bridge.settings", "bridge.cli")


def module_of(path: Path) -> str:
    """The dotted name of the module at `path`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def inside(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == room or module.startswith(room + ".") for room in rooms)


def imported(tree: ast.AST) -> Iterator[str]:
    """The top-level package of every absolute import in `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def environment_reads(tree: ast.AST) -> Iterator[int]:
    """The lines that touch os.environ or os.getenv, in whichever way they were imported."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names:
            yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (node.lineno for alias in node.names if alias.name in names)


def house() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(HOUSE.rglob("*.py")):
        yield module_of(path), ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_imports_run_downward_only() -> None:
    """The layers and the other import-linter contracts of pyproject.toml."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    result = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("library", ONLY_IN)
def test_library_stays_in_its_rooms(library: str) -> None:
    strays = [m for m, tree in house() if library in set(imported(tree)) and not inside(m, ONLY_IN[library])]
    assert not strays, f"{library} belongs to {', '.join(ONLY_IN[library])}"


def test_only_settings_and_the_command_line_read_the_environment() -> None:
    reads = [f"{m}:{n}" for m, tree in house() if not inside(m, ENVIRONMENT_READERS) for n in environment_reads(tree)]
    assert not reads


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.environ['A']",
        "from os import environ",
        "from os import getenv as g",
        "import os as o\no.getenv('A')",
    ],
)
def test_the_environment_rule_can_fail(source: str) -> None:
    assert list(environment_reads(ast.parse(source)))


@pytest.mark.parametrize(
    "source", ["import amqtt.broker", "from amqtt.broker import Broker", "def f():\n import amqtt"]
)
def test_the_library_rule_can_fail(source: str) -> None:
    assert "amqtt" in set(imported(ast.parse(source)))
