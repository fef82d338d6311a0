"""What `serve` says can be typed in a second terminal works there."""

from __future__ import annotations

import shlex
import shutil
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.cli import serve
from bridge.settings import Settings


def said(mqtt_port: int = 1883, http_port: int = 8080, devices: int = 3, **settings: Any) -> str:
    bridge: Any = SimpleNamespace(settings=Settings(**settings), mqtt_port=mqtt_port, http_port=http_port)
    return "\n".join(serve.hints(bridge, devices))


@pytest.fixture
def _mosquitto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "mosquitto_pub" else None)


@pytest.mark.usefixtures("_mosquitto")
def test_the_usual_ports_need_not_be_typed() -> None:
    text = said()
    assert "mosquitto_pub -t devices/fridge-7/telemetry -q 1 -m '{\"temperature\": 4.2}'" in text
    assert "send sim-0001 reboot" in text
    assert "BRIDGE_URL" not in text
    assert "--port" not in text


@pytest.mark.usefixtures("_mosquitto")
def test_other_ports_are_in_the_lines() -> None:
    text = said(mqtt_port=2883, http_port=9090, devices=0, topic_root="plant/a")
    assert "mosquitto_pub -p 2883 -t plant/a/fridge-7/telemetry " in text
    assert "BRIDGE_URL=http://127.0.0.1:9090 " in text
    assert "tail --port 2883" in text
    assert "send fridge-7 reboot" in text


def test_without_mosquitto_our_own_python_publishes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    (publish,) = (line for line in said().splitlines() if "publish" in line)
    program = shlex.split(publish)[-1]
    call = compile(program, "hint", "exec")
    assert "paho.mqtt" in program
    assert '{"temperature": 4.2}' in call.co_consts
