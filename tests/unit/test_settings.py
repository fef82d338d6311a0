"""Settings: which source wins, and what is said about a wrong one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bridge.cli import example
from bridge.errors import SettingsError
from bridge.settings import Settings, keys

EXAMPLE = Path(__file__).parents[2] / "config" / "bridge.example.toml"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variables and no .env of whoever runs the tests."""
    for name in list(os.environ):
        if name.upper().startswith("BRIDGE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "bridge.toml"


def refused(config: Path | None = None, **overrides: Any) -> str:
    """What the SettingsError says."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(config, **overrides)
    return str(caught.value)


# ---------------------------------------------------------------------- sources


def test_the_stronger_source_wins(monkeypatch: pytest.MonkeyPatch, toml: Path) -> None:
    toml.write_text("[mqtt]\nport = 1\nhost = '127.0.0.9'\nmax_queued = 5\n[http]\nport = 2\n")
    Path(".env").write_text("BRIDGE_MQTT__PORT=3\nBRIDGE_HTTP__PORT=4\nBRIDGE_MQTT__MAX_QUEUED=6\nOTHERS=7\n")
    monkeypatch.setenv("BRIDGE_MQTT__PORT", "8")
    monkeypatch.setenv("BRIDGE_HTTP__PORT", "9")
    settings = Settings.load(toml, http={"port": 10})
    assert (settings.http.port, settings.mqtt.port, settings.mqtt.max_queued) == (10, 8, 6)
    assert (settings.mqtt.host, settings.writer.batch_rows) == ("127.0.0.9", 2_048)
    origins = settings.origins()
    assert list(origins) == list(keys())
    assert origins["http.port"] == "command line"
    assert origins["mqtt.port"] == "environment BRIDGE_MQTT__PORT"
    assert origins["mqtt.max_queued"] == ".env BRIDGE_MQTT__MAX_QUEUED"
    assert origins["mqtt.host"] == str(toml)
    assert origins["writer.batch_rows"] == "default"


@pytest.mark.parametrize("place", ["environment", ".env"])
def test_the_file_is_named_by_a_variable(monkeypatch: pytest.MonkeyPatch, toml: Path, place: str) -> None:
    toml.write_text("topic_root = 'house'\n")
    if place == "environment":
        monkeypatch.setenv("BRIDGE_CONFIG", str(toml))
    else:
        Path(".env").write_text(f"BRIDGE_CONFIG={toml}\n")
    assert Settings.load().topic_root == "house"


def test_the_constructor_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_MQTT__PORT", "8")
    assert Settings().mqtt.port == 1883


def test_a_variable_set_to_nothing_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_HTTP__TOKEN", "")
    assert Settings.load().http.token is None


def test_a_group_may_come_as_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_MQTT__PLUGINS", '{"amqtt.plugins.Some.Class": {"Key": 1}}')
    assert Settings.load().mqtt.plugins == {"amqtt.plugins.Some.Class": {"Key": 1}}


def test_variables_of_the_operators_commands_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("BRIDGE_TOKEN", "not ours")
    assert set(Settings.load().origins().values()) == {"default"}


def test_the_data_directory_in_the_database_url() -> None:
    assert Settings(data_dir=Path("/var/lib/bridge")).database_url == "sqlite+aiosqlite:////var/lib/bridge/bridge.db"
    assert Settings().database_url == "sqlite+aiosqlite:///data/bridge.db"


# ---------------------------------------------------------------------- unknown keys


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("BRIDGE_MQTT__PROT", "BRIDGE_MQTT__PORT"),
        ("BRIDGE_MQTT_PORT", "BRIDGE_MQTT__PORT"),
        ("BRIDGE_DATADIR", "BRIDGE_DATA_DIR"),
        ("BRIDGE_MQTT__PORT__X", "BRIDGE_MQTT__PORT"),
        ("BRIDGE_TOKENS", "BRIDGE_TOKEN"),
    ],
)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_an_unknown_variable_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, place: str, name: str, nearest: str
) -> None:
    if place == "environment":
        monkeypatch.setenv(name, "1883")
    else:
        Path(".env").write_text(f"{name}=1883\n")
    said = refused()
    assert f"{place} {name}:" in said
    assert f"did you mean {nearest}?" in said


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("[mqtt]\nprot = 1\n", "mqtt.prot", "mqtt.port"),
        ("datadir = 'x'\n", "datadir", "data_dir"),
        ("[mqqt]\nport = 1\n", "mqqt", "mqtt"),
    ],
)
def test_an_unknown_key_names_the_nearest(toml: Path, text: str, key: str, nearest: str) -> None:
    toml.write_text(text)
    said = refused(toml)
    assert said.startswith(f"{toml}: {key}: ")
    assert f"did you mean {nearest}" in said


def test_an_unknown_override_is_refused() -> None:
    assert "mqtt.prot" in refused(mqtt={"prot": 1})


# ---------------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("BRIDGE_MQTT__PORT", "abc", "integer"),
        ("BRIDGE_MQTT__PORT", "70000", "65535"),
        ("BRIDGE_LOG__FORMAT", "xml", "'console' or 'json'"),
        ("BRIDGE_TOPIC_ROOT", "a/#", "+ #"),
        ("BRIDGE_COMMAND__TTL", "nan", "finite"),
        ("BRIDGE_WRITER__BATCH_WAIT", "-1", "greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_named_with_its_source(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, accepted: str
) -> None:
    monkeypatch.setenv(name, value)
    said = refused()
    assert f"environment {name}" in said
    assert repr(value) in said
    assert accepted in said


def test_every_wrong_value_is_named_at_once(toml: Path) -> None:
    toml.write_text("[mqtt]\nport = -1\n[agent]\nrestarts = 0\n")
    said = refused(toml)
    assert "mqtt.port is -1" in said
    assert "agent.restarts is 0" in said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"command": {"ttl": 100_000}}, "command.ttl is 100000.0, more than command.max_ttl"),
        ({"agent": {"sleep_after": 700}}, "more than agent.evict_after"),
        ({"writer": {"capacity": 10}}, "more than writer.capacity"),
    ],
)
def test_what_contradicts_itself_is_refused(overrides: dict[str, Any], said: str) -> None:
    assert said in refused(**overrides)


def test_a_file_that_is_not_there_or_not_toml(toml: Path) -> None:
    assert str(toml) in refused(toml)
    toml.write_text("port: 1883")
    assert f"{toml} is not TOML" in refused(toml)


def test_a_group_is_not_a_value(toml: Path) -> None:
    toml.write_text("mqtt = 1883\n")
    assert "mqtt is a group of settings" in refused(toml)


# ---------------------------------------------------------------------- secrets

SECRETS: dict[str, Any] = {
    "http": {"token": "hunter2-hunter2"},
    "database": {"url": "postgresql+asyncpg://bridge:hun@ter2@db/bridge?ssl=require&password=hunter2"},
    "mqtt": {"plugins": {"a.B": {"secret": "hunter2"}}},
}


def test_secrets_are_not_shown() -> None:
    settings = Settings.load(**SECRETS)
    shown = repr(settings.shown())
    assert "ter2" not in shown
    assert "ssl=require" in shown
    assert "postgresql+asyncpg://bridge:********@db/bridge" in shown
    assert "a.B" in shown
    assert settings.database_url == SECRETS["database"]["url"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"http": {"token": "ter2"}},
        {"http": {"token": 12345678}},
        {"database": {"url": ["postgresql+asyncpg://bridge:hunter2@db/bridge"]}},
        {"mqtt": {"plugins": {"a.B": "hunter2"}}},
    ],
)
def test_secrets_are_not_shown_in_errors(wrong: dict[str, Any]) -> None:
    said = refused(**wrong)
    assert "ter2" not in said
    assert "12345678" not in said
    assert "********" in said


# ---------------------------------------------------------------------- the example file


def test_the_example_file_is_up_to_date() -> None:
    assert EXAMPLE.read_text() == example.render(), "mqtt-bridge config --example > config/bridge.example.toml"


def test_the_example_file_is_the_defaults() -> None:
    loaded = Settings.load(EXAMPLE)
    assert loaded.model_dump() == Settings().model_dump()
    from_file = {key for key, origin in loaded.origins().items() if origin == str(EXAMPLE)}
    # TOML cannot say "not set": these stand there as comments.
    assert set(keys()) - from_file == {
        "mqtt.password_file",
        "mqtt.tls_port",
        "mqtt.websocket_port",
        "mqtt.websocket_tls_port",
        "mqtt.tls_certificate",
        "mqtt.tls_key",
        "http.token",
        "tracing.endpoint",
        "profiles",
        "sinks",
    }


def test_every_setting_says_why() -> None:
    lines = EXAMPLE.read_text().splitlines()
    for key in keys():
        name = key.rpartition(".")[2]
        number = next(
            n for n, line in enumerate(lines) if line.lstrip("# ").startswith((f"{name} =", f"[{name}.NAME]"))
        )
        assert lines[number - 1].startswith("# "), f"{key} has no reason"
