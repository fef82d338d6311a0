"""The pages for operators: every command in them is run, in its order, with a real bridge."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from bridge.settings import Settings
from bridge.testing import harness
from tests.acceptance.clients import Device
from tests.acceptance.conftest import MakeBridge
from tests.acceptance.process import ROOT, BridgeProcess, clean_environment
from tests.acceptance.test_production import Database, database, server
from tests.servers import free_port
from tests.waiting import until

DOCS: Final = ROOT / "docs"
BLOCK: Final = re.compile(r"^```sh(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE: Final = re.compile(r"^```\w+ (\S+\.\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANY_BLOCK: Final = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODULE: Final = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FROM_PROMETHEUS: Final = re.compile(r"- alert: (\w+)")
PAGES: Final = sorted(page for page in DOCS.glob("*.md") if "```toml" in page.read_text())
FOLLOWED: Final = frozenset(
    {
        *("first-device", "alerts", "api", "commands", "twin", "profiles", "backup", "upgrade"),
        *("operations", "tls", "postgresql"),
    }
)
ELSEWHERE: Final = frozenset({"device-logic", "page"})
"""Pages whose commands other tests run: of device logic, and of the browser."""

__all__ = ["database", "server"]  # fixtures


def follow(bridge: BridgeProcess, page: str, instead: Mapping[str, str] | None = None, typed: str = "") -> str:
    """Do what a page says, in its order, and return what was printed. `instead`: what stands for what is in the
    page, such as folders; `typed` is the standard input.

    `mqtt-bridge serve` is the bridge of this test; a block marked `stopped` is run while it is not running, one
    marked `endless` for a second.
    """
    environment = visit(bridge)
    for name, text in FILE.findall((DOCS / f"{page}.md").read_text()):
        (bridge.folder / name).write_text(text)
    printed = []
    for kind, scripts in groupby(blocks(page), kind_of):
        script = "".join(text if mark != "endless" else for_a_second(text) for mark, text in scripts)
        for there, here in {"http://127.0.0.1:8080": bridge.url(""), **(instead or {})}.items():
            script = script.replace(there, here)
        if kind == "serve":
            bridge.start(*shlex.split(script)[2:])
            continue
        if kind == "stopped" and bridge.running:
            assert bridge.terminate() == 0
        done = subprocess.run(
            ["bash", "-aeuo", "pipefail", "-c", script],
            cwd=bridge.folder,
            env=environment,
            input=typed,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        printed.append(done.stdout)
    return "\n".join(printed)


def kind_of(block: tuple[str, str]) -> str:
    """Blocks of one kind that follow each other are typed into one shell."""
    mark, script = block
    return "serve" if script.startswith("mqtt-bridge serve") else "stopped" if mark == "stopped" else "running"


def for_a_second(script: str) -> str:
    """What has no end by itself: it must still run when its time is over."""
    return f"timeout 1 bash -c {shlex.quote(script)} || [ $? = 124 ]\n"


def visit(bridge: BridgeProcess) -> dict[str, str]:
    """The environment of a shell in the bridge's folder in which the programs speak to this bridge, and `curl` fails
    when it is refused."""
    bridge.folder.mkdir(parents=True, exist_ok=True)
    commands = {"mqtt-bridge": shlex.join(bridge.command)}
    for name in ("mosquitto_pub", "mosquitto_sub"):
        if found := shutil.which(name):
            commands[name] = f"{found} -p {bridge.mqtt_port}"
    for name, command in commands.items():
        path = bridge.folder / name
        path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        path.chmod(0o755)
    (bridge.folder / ".curlrc").write_text("fail-with-body\nsilent\n")
    path_of_programs = f"{bridge.folder}:{bridge.environment['PATH']}"
    return bridge.environment | {"PATH": path_of_programs, "CURL_HOME": str(bridge.folder)}


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """The commands of a page, block after block, each with its mark."""
    found = BLOCK.findall((DOCS / f"{page}.md").read_text())
    assert found, f"no commands in {page}"
    yield from found


def ports(bridge: BridgeProcess) -> dict[str, str]:
    return {"1883": str(bridge.mqtt_port), "8883": str(free_port())}


class Fridge(Device):
    """A device that carries out every command."""

    def __init__(self, bridge: BridgeProcess, device_id: str) -> None:
        super().__init__(bridge, device_id)
        self.topic = f"devices/{device_id}/command"
        self.on_message = self._obey
        self.on_subscribe = lambda *_: None

    def _connected(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        self.subscribe(f"{self.topic}/request", 1)
        super()._connected(client, userdata, flags, reason, properties)

    def _obey(self, _client: Any, _userdata: Any, message: Any) -> None:
        request = json.loads(message.payload)
        self.publish(f"{self.topic}/response", json.dumps({"id": request["id"], "status": "succeeded"}), 1)


@pytest.mark.mosquitto
def test_the_first_device_and_the_api(make_bridge: MakeBridge) -> None:
    bridge = make_bridge()
    printed = follow(bridge, "first-device", ports(bridge))
    assert "4.2 to 4.6" in printed
    assert "kitchen" in printed
    assert "no JSON" in printed
    assert bridge.rows("SELECT count(*) FROM telemetry") == [(2,)]
    assert "difference 0" in follow(bridge, "alerts")
    assert '"dead_lettered":1' in follow(bridge, "api")
    assert (bridge.folder / "fridge-7.csv").read_text().count("\n") == 3


@pytest.mark.mosquitto
def test_commands_and_the_twin(bridge: BridgeProcess) -> None:
    tagged = {"devices": [{"device_id": "fridge-8", "tags": ["cold"]}]}
    bridge.post("/api/v1/registry", tagged)
    with Fridge(bridge, "fridge-7"), Fridge(bridge, "fridge-8"):
        printed = follow(bridge, "commands")
        until(
            lambda: bridge.rows("SELECT status, count(*) FROM commands GROUP BY status") == [("succeeded", 6)],
            "every command to be carried out",
        )
    assert "finished: 1 succeeded" in printed
    assert "etag" in follow(bridge, "twin").lower()
    assert bridge.rows("SELECT desired FROM twins WHERE device_id = 'pump-1'") == [('{"interval":60}',)]


def test_profiles_and_the_registry(make_bridge: MakeBridge, tmp_path: Path) -> None:
    settings = tmp_path / "bridge.toml"
    settings.write_text('[profiles.freezer]\nmatch = ["freezer-*"]\n')
    bridge = make_bridge(BRIDGE_CONFIG=str(settings)).start()
    assert "2 devices imported, 2 of them new" in follow(bridge, "profiles")


def test_a_backup_and_an_upgrade(bridge: BridgeProcess, tmp_path: Path) -> None:
    follow(bridge, "backup", {"/backups": str(tmp_path)})
    assert list(bridge.data.glob("*.before-restore-1"))
    bridge.start()
    assert "before-upgrade.db" in follow(bridge, "upgrade")


def test_operations(make_bridge: MakeBridge, tmp_path: Path) -> None:
    """There is no container engine here: what would be run in a container is run beside it."""
    bridge = make_bridge()
    data = bridge.start().data
    shutil.copytree(ROOT / "docker", bridge.folder / "docker")
    docker = bridge.folder / "docker-engine" / "docker"
    docker.parent.mkdir()
    docker.write_text(
        "#!/bin/bash\nset -eu\n"
        '[[ "$1 $2 $4 $5" == "compose -f --profile edge" && -f $3 ]]\nshift 5\n'
        'case "$1" in up | logs | restart) exit ;; run) [[ "$2 $3" == "--rm edge" ]]; shift 3 ;; *) exit 64 ;; esac\n'
        f'exec mqtt-bridge "${{@/#\\/data\\//{data}/}}"\n'
    )
    docker.chmod(0o755)
    bridge.environment["PATH"] = f"{docker.parent}:{bridge.environment['PATH']}"
    printed = follow(bridge, "operations", typed="a good password\na good password\n")
    assert re.search(r"^1 registered, 1 of them new\.$", printed, re.MULTILINE)
    assert (data / "passwords").read_text().startswith("operator:")
    assert re.fullmatch(r"POSTGRES_PASSWORD=[0-9a-f]{48}\n", (bridge.folder / "docker/.env").read_text())


@pytest.mark.mosquitto
def test_tls(make_bridge: MakeBridge) -> None:
    bridge = make_bridge()
    follow(bridge, "tls", ports(bridge))
    assert bridge.rows("SELECT device_id FROM telemetry") == [("fridge-7",)]


def test_the_page_s_own_sink_gets_what_is_committed(make_bridge: MakeBridge, tmp_path: Path) -> None:
    page = (DOCS / "sinks.md").read_text()
    (module, code) = next(found for found in MODULE.findall(page) if found[0] == "my_sinks.py")
    settings = next(text for label, text in ANY_BLOCK.findall(page) if label == "toml" and "my_sinks" in text)
    (tmp_path / "bridge.toml").write_text(settings)
    bridge = make_bridge(BRIDGE_CONFIG=str(tmp_path / "bridge.toml"))
    bridge.command.insert(1, "-P")  # an installed command does not look for modules in the working directory
    bridge.folder.mkdir(parents=True, exist_ok=True)
    (bridge.folder / module).write_text(code)
    bridge.start()
    with Device(bridge, "fridge-7") as device:
        device.publish("devices/fridge-7/telemetry", '{"t": 4}', 1)
        until(lambda: "-> telemetry-" in bridge.output(), "the sink to print it", 30)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_set_on_a_page_can_be_set(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table of settings is loaded as `serve` loads it, with the files that it names."""
    monkeypatch.chdir(tmp_path)
    for name in clean_environment().keys() ^ os.environ.keys():
        monkeypatch.delenv(name)
    text = page.read_text()
    for name, code in MODULE.findall(text):
        (tmp_path / name).write_text(code)
    (tmp_path / "schemas").mkdir()
    for schema in re.findall(r"schemas/\w+\.json", text):
        (tmp_path / schema).write_text('{"type": "object"}')
    for label, block in ANY_BLOCK.findall(text):
        if label.split(" ")[0] == "toml":
            (tmp_path / "bridge.toml").write_text(block)
            settings = Settings.load(tmp_path / "bridge.toml")
            profiles = settings.complete_profiles()
            assert {profile.name for profile in profiles} >= settings.profiles.keys()
            assert settings.origins() != Settings().origins(), block


def test_the_class_in_the_readme_is_an_agent() -> None:
    (code,) = [text for label, text in ANY_BLOCK.findall((ROOT / "README.md").read_text()) if label == "python"]
    names: dict[str, Any] = {"__name__": "coldchain"}
    exec(compile("from __future__ import annotations\n" + code, "coldchain.py", "exec"), names)  # noqa: S102 - our page

    async def main() -> None:
        async with harness(names["Freezer"], device_id="f1") as device:
            await device.telemetry({"temperature": -3})
            assert device.commands == [("compressor", {"on": True}, 30)]

    asyncio.run(main())


def test_the_state_of_a_page_s_agent_is_migrated_from_the_one_before(tmp_path: Path) -> None:
    """The page's first class stores a state, which the class that replaces it reads."""
    page = (DOCS / "device-logic.md").read_text()
    before = dict(MODULE.findall(page))["freezer.py"]
    (after,) = [text for label, text in ANY_BLOCK.findall(page) if label == "python" and "migrate" in text]
    names: dict[str, Any] = {"__name__": "freezer"}
    exec(compile("from __future__ import annotations\n" + before, "freezer.py", "exec"), names)  # noqa: S102 - our page
    raw = msgspec.to_builtins(names["Freezer"].State(too_warm=3))
    exec(compile("from typing import Any\n" + after, "freezer.py", "exec"), names)  # noqa: S102 - our page
    assert names["Freezer"].migrate(1, raw) == {"warm": {"default": 3}}
    assert msgspec.convert({"warm": {"default": 3}}, names["Freezer"].State).warm == {"default": 3}


@pytest.mark.postgres
def test_postgresql(make_bridge: MakeBridge, database: Database) -> None:
    bridge = make_bridge(BRIDGE_DATABASE__URL=database.url)
    follow(bridge, "postgresql", {"postgresql+asyncpg://bridge:secret@127.0.0.1:5432/bridge": database.url})
    assert bridge.get("/api/v1/summary")["database"]["dialect"] == "postgresql"


def test_each_alert_is_told() -> None:
    rules = set(FROM_PROMETHEUS.findall(Path(ROOT / "docker/alerts.yaml").read_text()))
    told = set(re.findall(r"^\| `(Bridge\w+)`", (DOCS / "alerts.md").read_text(), re.MULTILINE))
    assert told == rules


def test_no_command_is_left_out() -> None:
    for page in DOCS.glob("*.md"):
        for label, text in ANY_BLOCK.findall(page.read_text()):
            if re.match(r"(mqtt-bridge|curl|mosquitto_|docker|make|\.venv)\b", text) and page.stem not in ELSEWHERE:
                assert label.split(" ")[0] == "sh", f"{page.name}: {text}"
                assert page.stem in FOLLOWED, f"{page.name} is followed by no test"
