"""What the container is made of, proved without a container engine: the wheel and the lock alone in an empty
environment, run by a user who may write nowhere but into the data directory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.clients import Device
from tests.acceptance.process import BridgeProcess

ROOT = Path(__file__).parents[2]
NOBODY = 65534
TOKEN = "a-token-for-this-test"


def unprivileged(*command: str) -> list[str]:
    """`command` as it runs without any privilege: as nobody, when the tests run as root."""
    if os.geteuid() != 0:
        return list(command)
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all", "--no-new-privs"]
    return ["setpriv", *user, "--", *command]


@pytest.fixture(scope="module")
def public_folder() -> Iterator[Path]:
    """A folder that every user may enter, as pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="bridge-package-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="module")
def wheel(public_folder: Path) -> Path:
    out = public_folder / "dist"
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return path


def interpreter() -> str:
    """A Python that an unprivileged user may run: not one from another user's home."""
    test = "import sys, sqlite3, venv; sys.exit(sys.version_info < (3, 11))"
    for candidate in (getattr(sys, "_base_executable", sys.executable), "/usr/bin/python3.11", "/usr/bin/python3"):
        path = os.path.realpath(candidate)
        # Not the mere file: a user who may not enter its folder cannot run it.
        if subprocess.run(unprivileged(path, "-c", test), capture_output=True, check=False).returncode == 0:
            return path
    pytest.fail("no Python 3.11 here that an unprivileged user may run; apt install python3")


@pytest.fixture(scope="module")
def installed(public_folder: Path, wheel: Path) -> Path:
    """An environment with what the lock names and the wheel, and nothing else: as docker/Dockerfile builds it."""
    environment = public_folder / "environment"
    subprocess.run([interpreter(), "-m", "venv", "--without-pip", str(environment)], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(environment / "bin/python")]
    lock = ROOT / "requirements.lock"
    subprocess.run([*pip, "install", "--quiet", "--require-hashes", "-r", str(lock)], check=True)
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    complete = subprocess.run([*pip, "check"], capture_output=True, text=True, check=False)
    assert complete.returncode == 0, f"the lock does not hold all that the wheel asks for: {complete.stdout}"
    return environment


@pytest.fixture
def contained(public_folder: Path, installed: Path) -> Iterator[BridgeProcess]:
    """The installed command with the container's own settings; its folder is readable, only `data` is writable."""
    folder = Path(tempfile.mkdtemp(dir=public_folder))
    program = unprivileged(str(installed / "bin" / "mqtt-bridge"))
    bridge = BridgeProcess(folder, container_settings(folder / "data"), program)
    bridge.token = TOKEN
    bridge.environment |= {"BRIDGE_HTTP__TOKEN": TOKEN, "BRIDGE_TOKEN": TOKEN, "HOME": "/nonexistent"}
    bridge.data.mkdir(mode=0o750)
    if os.geteuid() == 0:
        os.chown(bridge.data, NOBODY, NOBODY)
    bridge.working_directory = folder / "read-only"
    bridge.working_directory.mkdir(mode=0o555)
    folder.chmod(0o755)
    yield bridge
    if bridge.running:
        bridge.kill()
    print(bridge.output()[-8000:])
    shutil.rmtree(folder)


def container_settings(data: Path) -> dict[str, str]:
    """The BRIDGE_… variables that docker/Dockerfile sets, with `data` in the place of its volume."""
    found = re.findall(r"(BRIDGE_\w+)=(\S+)", (ROOT / "docker" / "Dockerfile").read_text())
    assert found
    return {name: re.sub(r"^/data", str(data), value) for name, value in found}


def test_the_wheel_carries_what_the_bridge_needs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "bridge/py.typed" in names
    for folder in ("bridge", "migrations"):
        missing = {
            str(Path("bridge", path.relative_to(ROOT / "bridge") if folder == "bridge" else path.relative_to(ROOT)))
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        } - names
        assert not missing
    assert not [name for name in names if name.startswith(("tests/", "docker/", "config/"))]


def test_it_is_the_wheel_that_runs(contained: BridgeProcess, installed: Path) -> None:
    where = "import bridge, pathlib; print(pathlib.Path(bridge.__file__).parent)"
    python = unprivileged(str(installed / "bin" / "python"), "-c", where)
    found = subprocess.run(python, cwd=contained.working_directory, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(installed)


def test_migrations_come_from_the_wheel(contained: BridgeProcess) -> None:
    for _ in range(2):
        migrated = contained.run("migrate")
        assert migrated.returncode == 0, migrated.stdout + migrated.stderr
    tables = {row[0] for row in contained.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables >= {"devices", "telemetry", "commands", "command_events", "twins", "presence", "dead_letters"}


def test_the_container_s_way_of_life(contained: BridgeProcess) -> None:
    """The first start needs nothing made before it: a device gets a token, an operator of MQTT a line in the password
    file, which the next start reads. Healthy while it runs and only then."""
    assert contained.run("healthcheck").returncode == 1
    contained.start()
    assert contained.run("healthcheck").returncode == 0
    assert contained.run("devices", "add", "fridge-7").returncode == 0
    issued = contained.run("devices", "issue", "fridge-7")
    assert issued.returncode == 0, issued.stdout + issued.stderr
    assert contained.terminate() == 0
    contained.start()

    for wrong in ({}, {"username": "operator", "password": "correct"}, {"username": "fridge-7", "password": "wrong"}):
        with Device(contained, "stranger", **wrong) as stranger:
            assert stranger.refused
    added = contained.run(
        "passwd", str(contained.data / "passwords"), "operator", "--role", "operator", "--password-stdin",
        typed="correct\n",
    )  # fmt: skip
    assert added.returncode == 0, added.stdout + added.stderr
    assert contained.terminate() == 0
    contained.start()
    with Device(contained, "anybody", username="operator", password="correct") as operator:
        assert not operator.refused
    with Device(contained, "fridge-7", username="fridge-7", password=issued.stdout.strip()) as device:
        assert not device.refused
        device.publish_acknowledged("devices/fridge-7/telemetry", '{"id": "a", "temperature": 4.2}')
    assert contained.stored_ids() == {"a"}

    assert contained.status("/api/v1/devices") == 401, "the API answers without the token"
    listed = contained.run("devices")
    assert listed.returncode == 0, listed.stderr
    assert "fridge-7" in listed.stdout

    contained.settled_ledger()
    assert contained.terminate() == 0
    assert contained.run("healthcheck").returncode == 1
    strays = [path.name for path in contained.working_directory.iterdir()]
    assert not strays
