"""What is done on the bridge's own machine: `config`, `migrate`, `passwd`, `healthcheck`."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from bridge.cli import terminal
from bridge.cli.api import base_url
from bridge.cli.terminal import ConfigOption
from bridge.errors import BridgeError, SettingsError

HEALTHY_WITHIN: Final = 4.0
"""Seconds for the answer to a health check, less than a container engine waits for it."""


def config(
    config: ConfigOption = None,
    example: Annotated[bool, typer.Option("--example", help="Print a settings file with every default.")] = False,
) -> None:
    """Show every setting: its value and where it came from."""
    from bridge.settings import Settings

    if example:
        from bridge.cli import example as example_file

        print(example_file.render(), end="")
        return
    settings = Settings.load(config)
    values, origins = settings.shown(), settings.origins()
    rows = [(key, "" if values[key] is None else values[key], origins[key]) for key in origins]
    terminal.console().print(terminal.table(("setting", "value", "from"), rows))


def migrate(
    config: ConfigOption = None,
    check: Annotated[bool, typer.Option("--check", help="Only say whether there is something to do (exit 1).")] = False,
) -> None:
    """Bring the database's schema up to date."""
    from bridge import logs
    from bridge.settings import Settings
    from bridge.storage import migrate as schema

    settings = Settings.load(config)
    logs.configure(settings.log.level, settings.log.format)

    async def work() -> None:
        before, head = await schema.current(settings.database_url), await schema.head()
        if before == head:
            print(f"The schema is up to date: {head}.")
        elif check:
            raise BridgeError(f"the schema is {before or 'not there'}, this version needs {head}")
        else:
            _make(settings.data_dir)
            upgrade = schema.upgrade(settings.database_url, timescaledb=settings.database.timescaledb == "auto")
            print(f"The schema is now {await upgrade}.")

    terminal.run(work())


def passwd(
    file: Annotated[Path, typer.Argument(help="The password file (BRIDGE_MQTT__PASSWORD_FILE).")],
    name: Annotated[str, typer.Argument(help="The user; a device's name is its id.")],
    role: Annotated[Literal["device", "operator"], typer.Option(help="What the user may do.")] = "device",
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from a pipe.")] = False,
) -> None:
    """Add a user, or give one a new password."""
    import argon2

    from bridge.topics import is_device_id

    if role == "device" and not is_device_id(name):
        raise typer.BadParameter(f"{name!r} is no device id: use 1 to 64 of A-Z a-z 0-9 . _ : -", param_hint="NAME")
    if re.fullmatch(r"[^\s:#][^\s:]*", name) is None or not name.isprintable():
        raise typer.BadParameter("a name has no spaces and no colon, and does not begin with #", param_hint="NAME")
    password = (
        sys.stdin.readline().rstrip("\r\n")
        if password_stdin
        else typer.prompt(f"Password of {name}", hide_input=True, confirmation_prompt=True)
    )
    if not password:
        raise BridgeError("the password is empty")
    hashed = argon2.PasswordHasher().hash(password)
    replaced = _replace_user(file, name, f"{name}:{hashed}" + (":operator" if role == "operator" else ""))
    print(f"{file}: {role} {name} {'has a new password' if replaced else 'added'}. The bridge reads it when it starts.")


def healthcheck(config: ConfigOption = None) -> None:
    """Ask the bridge on this machine whether it is alive: exit code 0 or 1."""
    import httpx

    from bridge.settings import Settings

    url = f"{base_url(Settings.load(config))}/healthz"
    try:
        response = httpx.get(url, timeout=HEALTHY_WITHIN, trust_env=False)
    except httpx.HTTPError as error:
        raise BridgeError(f"{url}: {error}") from error
    if not response.is_success:
        raise BridgeError(f"{url}: {response.status_code}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be made: {error.strerror}; see BRIDGE_DATA_DIR") from error


def _replace_user(path: Path, name: str, line: str) -> bool:
    """Write the user's line in the place of an older one, or at the end; whether there was one. The file is replaced
    as a whole: a bridge that starts meanwhile reads the old one or the new one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        places = [index for index, old in enumerate(lines) if old.strip().partition(":")[0] == name]
        if places:
            lines[places[0]] = line
            lines = [old for index, old in enumerate(lines) if index not in places[1:]]
        else:
            lines.append(line)
        # mkstemp makes files that only their owner may read.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
                file.flush()
                os.fsync(descriptor)
            _keep_owner(path, temporary)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink()
            raise
    except (OSError, UnicodeDecodeError) as error:
        raise BridgeError(f"{path}: {error}") from error
    return bool(places)


def _keep_owner(path: Path, temporary: str) -> None:
    """As root: the file stays its owner's, who runs the bridge."""
    if path.exists() and os.geteuid() == 0:
        status = path.stat()
        os.chown(temporary, status.st_uid, status.st_gid)
