"""The log: one form for everybody's lines, and no work for lines that are not printed."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import structlog

from bridge import logs


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


pytestmark = pytest.mark.usefixtures("log_as_before")


def ours(name: str = "bridge.app") -> Any:
    return structlog.get_logger(name)


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", "json")
    ours().info("started", port=1883, path=Path("x"))
    logging.getLogger("amqtt.broker").warning("lost %s", "it")
    try:
        int("broken")
    except ValueError:
        ours().exception("failed")
    first, second, third = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["event"], first["port"], first["level"], first["logger"]) == ("started", 1883, "info", "bridge.app")
    assert first["timestamp"].endswith("Z")
    assert (second["event"], second["level"], second["logger"]) == ("lost it", "warning", "amqtt.broker")
    assert "ValueError: " in third["exception"]


@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("DEBUG", ["our debug", "our info", "our warning", "their info", "their warning"]),
        ("INFO", ["our info", "our warning", "their warning"]),
        ("WARNING", ["our warning", "their warning"]),
        ("ERROR", []),
    ],
)
def test_libraries_say_less_than_we_do(capsys: pytest.CaptureFixture[str], level: str, said: list[str]) -> None:
    logs.configure(level, "json")
    for name in ("debug", "info", "warning"):
        getattr(ours(), name)(f"our {name}")
        getattr(logging.getLogger("amqtt.broker"), name)(f"their {name}")
    assert sorted(json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()) == sorted(said)


def test_a_library_with_a_level_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("library")
    library.setLevel(logging.DEBUG)
    logs.configure("ERROR", "json")
    library.warning("not important enough")
    library.error("important")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["important"]


def test_a_line_that_is_not_printed_is_not_formatted(capsys: pytest.CaptureFixture[str]) -> None:
    formatted = []

    class Costly:
        def __repr__(self) -> str:
            formatted.append(self)
            return "costly"

    logs.configure("INFO", "console")
    ours().debug("not printed", value=Costly())
    logging.getLogger("sqlalchemy.engine").info("not printed: %r", Costly())
    assert not formatted
    ours().info("printed", value=Costly())
    assert formatted


def test_a_value_does_not_break_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", "console")
    ours().warning("refused", topic="a\nb\x1b[31m")
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "\x1b" not in said


def test_colours_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    logs.configure("INFO", "console")
    ours().info("started")
    assert "\x1b[" in stream.getvalue()


def test_a_traceback_shows_no_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", "console")

    def login(password: str) -> None:
        raise ValueError("broken")

    try:
        login("hunter2")
    except ValueError:
        ours().exception("failed")
    said = capsys.readouterr().err
    assert "ValueError: broken" in said
    assert said.count("hunter2") == 1, "only in the source line that is quoted"


def test_warnings_are_log_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.configure("INFO", "json")
        warnings.warn("careful", stacklevel=1)
        logging.captureWarnings(False)
    assert "careful" in json.loads(capsys.readouterr().err)["event"]


def test_a_file_instead_of_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 2_000)
    logs.configure("INFO", "console", tmp_path / "bridge.log")
    for number in range(100):
        ours().info("line", number=number)
    assert capsys.readouterr().err == ""
    assert "number=99" in (tmp_path / "bridge.log").read_text()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 1 + logs.FILE_BACKUPS, "what was written is bounded"
    assert all(file.stat().st_size <= 2_000 for file in files)


def test_configured_twice_says_it_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", "json")
    logs.configure("INFO", "json")
    ours().info("started")
    assert len(capsys.readouterr().err.splitlines()) == 1
