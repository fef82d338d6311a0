"""What is done on the bridge's own machine: settings shown, users written, the schema made, the machine checked."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from pathlib import Path

import argon2
import pytest

from bridge.broker.passwords import Passwords
from tests.unit.cli.conftest import Run

# ---------------------------------------------------------------------- errors


def test_wrong_settings_are_one_line_and_exit_code_2(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BRIDGE_MQTT__PROT", "1")
    assert run("config") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mqtt-bridge: ")
    assert len(err.splitlines()) == 1


def test_wrong_usage_is_exit_code_2(run: Run) -> None:
    assert run("no-such-command") == 2
    assert run("passwd") == 2
    assert run("send", "fridge-7", "reboot", "--arg", "no equals sign") == 2
    assert run("simulate", "--replay", "x.csv", "--timezone", "Nowhere/Else") == 2


def test_ctrl_c_is_exit_code_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bridge.settings.Settings.load", interrupted)
    assert run("config") == 130


# ---------------------------------------------------------------------- config


def test_config_says_what_is_set_and_from_where(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BRIDGE_HTTP__TOKEN", "hunter2-hunter2")
    Path("bridge.toml").write_text("[mqtt]\nport = 2000\n")
    assert run("config", "--config", "bridge.toml") == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert lines["mqtt.port"] == ["2000", "bridge.toml"]
    assert lines["http.token"] == ["********", "environment", "BRIDGE_HTTP__TOKEN"]
    assert lines["http.port"] == ["8080", "default"]


# ---------------------------------------------------------------------- passwd


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What comes from standard input."""

    def say(text: str) -> None:
        monkeypatch.setattr("sys.stdin", StringIO(text))

    return say


def users(path: Path) -> dict[str, list[str]]:
    return {name: rest for name, *rest in (line.split(":") for line in path.read_text().splitlines())}


def test_passwd_adds_and_replaces(run: Run, typed: Callable[[str], None], tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    for name, role, password in (
        ("fridge-7", "device", "first"),
        ("eve", "operator", "second"),
        ("fridge-7", "device", "third"),
    ):
        typed(f"{password}\n")
        assert run("passwd", str(path), name, "--role", role, "--password-stdin") == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["passwords"], "nothing is left beside it"
    found = users(path)
    assert list(found) == ["fridge-7", "eve"]
    assert found["eve"][1:] == ["operator"]
    assert found["fridge-7"][1:] == []
    assert argon2.PasswordHasher().verify(found["fridge-7"][0], "third")
    Passwords(path).close()  # the broker can read it


def test_passwd_keeps_what_others_wrote(run: Run, typed: Callable[[str], None]) -> None:
    Path("passwords").write_text("# our devices\n\nold:$argon2id$x\n")
    typed("secret\n")
    assert run("passwd", "passwords", "new", "--password-stdin") == 0
    assert Path("passwords").read_text().startswith("# our devices\n\nold:$argon2id$x\nnew:$argon2")


@pytest.mark.parametrize(
    ("name", "role"),
    [("a b", "device"), ("a:b", "operator"), ("#a", "operator"), ("a b", "operator"), ("", "operator")],
)
def test_passwd_refuses_names_that_the_file_cannot_hold(
    run: Run, typed: Callable[[str], None], name: str, role: str
) -> None:
    typed("secret\n")
    assert run("passwd", "passwords", name, "--role", role, "--password-stdin") == 2
    assert not Path("passwords").exists()


def test_passwd_refuses_an_empty_password(run: Run, typed: Callable[[str], None]) -> None:
    typed("\n")
    assert run("passwd", "passwords", "eve", "--password-stdin") == 1
    assert not Path("passwords").exists()


def test_passwd_says_where_it_cannot_write(
    run: Run, typed: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    typed("secret\n")
    assert run("passwd", "no/such/folder", "eve", "--password-stdin") == 1
    assert "no/such" in capsys.readouterr().err


# ---------------------------------------------------------------------- migrate


@pytest.mark.usefixtures("log_as_before")
def test_migrate_makes_the_schema_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("migrate", "--check") == 1
    assert not Path("data").exists(), "to check changes nothing"
    assert run("migrate") == 0
    assert Path("data/bridge.db").exists()
    assert run("migrate", "--check") == 0
    assert run("migrate") == 0
    assert "up to date" in capsys.readouterr().out


# ---------------------------------------------------------------------- healthcheck


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()
        self.wfile.write(b'{"status": "ok"}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[int]:
    """The port of somebody who answers as a bridge does."""
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_healthcheck(run: Run, monkeypatch: pytest.MonkeyPatch, answering: int) -> None:
    monkeypatch.setenv("BRIDGE_HTTP__PORT", str(answering))
    # A container listens on all addresses, and may name a proxy for the internet.
    monkeypatch.setenv("BRIDGE_HTTP__HOST", "0.0.0.0")  # noqa: S104 - nobody listens there
    monkeypatch.setenv("BRIDGE_HTTP__TOKEN", "long enough")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert run("healthcheck") == 0


def test_healthcheck_of_nobody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_HTTP__PORT", "1")
    assert run("healthcheck") == 1


# ---------------------------------------------------------------------- doctor


@pytest.fixture
def good_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that every machine can serve."""
    for name, value in {"MQTT__PORT": "0", "HTTP__PORT": "0", "MQTT__MAX_CONNECTIONS": "10"}.items():
        monkeypatch.setenv(f"BRIDGE_{name}", value)


@pytest.mark.usefixtures("good_machine")
class TestDoctor:
    def test_all_is_well(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("doctor") == 0
        out = capsys.readouterr().out
        assert "✗" not in out
        for subject in (
            "Python",
            "open files",
            "MQTT port",
            "HTTP port",
            "data directory",
            "disk",
            "database",
            "clock",
        ):
            assert f"✓ {subject}: " in out
        assert not Path("data").exists(), "to look changes nothing"

    def test_a_taken_port(self, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = str(other.getsockname()[1])
            monkeypatch.setenv("BRIDGE_MQTT__PORT", port)
            assert run("doctor") == 1
        out = capsys.readouterr().out
        (line,) = (line for line in out.splitlines() if line.startswith("✗"))
        assert "MQTT port" in line
        assert port in line
        assert str(os.getpid()) in line
        assert "BRIDGE_MQTT__PORT" in out

    def test_the_ports_of_a_running_bridge_are_no_fault(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answering: int
    ) -> None:
        monkeypatch.setenv("BRIDGE_HTTP__PORT", str(answering))
        assert run("doctor") == 0
        assert "a bridge is running" in capsys.readouterr().out

    def test_too_few_open_files(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
        monkeypatch.setenv("BRIDGE_MQTT__MAX_CONNECTIONS", "2000")
        assert run("doctor") == 0, "`serve` raises the soft limit itself"
        capsys.readouterr()
        monkeypatch.setenv("BRIDGE_MQTT__MAX_CONNECTIONS", "5000")
        assert run("doctor") == 1
        assert "LimitNOFILE=5200" in capsys.readouterr().out

    def test_a_data_directory_that_cannot_be_made(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("file").write_text("")
        monkeypatch.setenv("BRIDGE_DATA_DIR", "file/data")
        assert run("doctor") == 1
        assert "✗ data directory" in capsys.readouterr().out

    def test_a_database_that_is_none(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        Path("data").mkdir()
        Path("data/bridge.db").write_text("this is no database, whatever its name says" * 100)
        assert run("doctor") == 1
        assert "✗ database" in capsys.readouterr().out

    def test_a_database_that_is_not_there(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("BRIDGE_DATABASE__URL", "postgresql+asyncpg://bridge:hunter2@127.0.0.1:1/bridge")
        assert run("doctor") == 1
        out = capsys.readouterr().out
        assert "✗ database" in out
        assert "hunter2" not in out

    def test_a_clock_that_was_never_set(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("bridge.cli.doctor.EARLIEST_YEAR", 9999)
        assert run("doctor") == 1
        assert "✗ clock" in capsys.readouterr().out
