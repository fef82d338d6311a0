"""Running the command line in this process, as if nothing were set on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import bridge.cli

Run = Callable[..., int]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variables, no .env and no data directory of whoever runs the tests."""
    for name in list(os.environ):
        if name.upper().startswith("BRIDGE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `mqtt-bridge` with some arguments; its exit code."""

    def call(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["mqtt-bridge", *arguments])
        with pytest.raises(SystemExit) as ended:
            bridge.cli.main()
        code = ended.value.code
        return code if isinstance(code, int) else 0

    return call
