"""`mqtt-bridge devices …`: the registry of a running bridge. Without a further word it lists the devices."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import quote

import typer

from bridge.cli import operate, terminal
from bridge.cli.api import connect
from bridge.cli.completion import device_ids
from bridge.cli.terminal import JsonOption
from bridge.errors import BridgeError, RefusedError

PORTION: Final = 1_000
"""Devices in one request."""
COLUMNS: Final = ("device_id", "profile", "tags", "metadata")

app = typer.Typer(help="The devices: list them, register them, give them credentials.")
Device = Annotated[str, typer.Argument(help="The device's id.", autocompletion=device_ids)]
Tag = Annotated[list[str] | None, typer.Option(help="May be given again.")]


@app.callback(invoke_without_command=True)
def devices(
    context: typer.Context,
    as_json: JsonOption = False,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many, in the order of their ids.")] = 1_000,
) -> None:
    """List the devices: status, when they were last heard, their last readings."""
    if context.invoked_subcommand is None:
        operate.devices(as_json, limit)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="CSV with a header, or JSON: one object a line, or an array of them.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check the file.")] = False,
) -> None:
    """Register devices from a file. Columns: device_id, profile, tags (separated by blanks), metadata (JSON).

    Any other column is a metadata field of that name. What is empty or left out stays as it is. The same file again
    changes nothing.
    """
    done = new = 0
    with connect() as api:
        profiles = [profile["name"] for profile in api.get("/api/v1/profiles")["profiles"]]
        rows = _checked(_rows(file), profiles)
        if dry_run:
            print(f"{sum(1 for _ in rows):,} devices can be imported.")
            return
        with terminal.counting("devices") as count:
            while portion := list(islice(rows, PORTION)):
                answer = api.post("/api/v1/registry", {"devices": portion})
                done, new = done + answer["devices"], new + answer["new"]
                count(done)
    print(f"{done:,} devices imported, {new:,} of them new.")


@app.command()
def export() -> None:
    """Print all devices as JSON, one a line, in the form that `import` reads."""
    with connect() as api:
        after = ""
        while True:
            page = api.get("/api/v1/registry", {"limit": PORTION, "after": after})
            for device in page["devices"]:
                print(json.dumps(device, ensure_ascii=False))
            after = page["next"] or ""
            if not after:
                return


@app.command()
def show(device: Device, as_json: JsonOption = False) -> None:
    """Show a device: registry, presence, last readings, twin, newest commands."""
    operate.show(device, as_json)


@app.command()
def add(
    devices: Annotated[list[str], typer.Argument(help="Ids of devices.")],
    profile: Annotated[str | None, typer.Option(help="What kind of device.")] = None,
    tag: Tag = None,
) -> None:
    """Register devices, before or after they are first heard of."""
    fields: dict[str, Any] = {"profile": profile} if profile is not None else {}
    if tag:
        fields["tags"] = tag
    with connect() as api:
        answer = api.post("/api/v1/registry", {"devices": [{"device_id": one, **fields} for one in devices]})
    print(f"{answer['devices']} registered, {answer['new']} of them new.")


@app.command("set")
def set_(
    device: Device,
    profile: Annotated[str | None, typer.Option(help="Its profile from now on.")] = None,
    tag: Tag = None,
    untag: Tag = None,
    metadata: Annotated[str | None, typer.Option(help="A JSON object, in place of what is there.")] = None,
) -> None:
    """Change a device's profile, tags or metadata."""
    body: dict[str, Any] = {"profile": profile, "add_tags": tag or [], "remove_tags": untag or []}
    if metadata is not None:
        body["metadata"] = _object(metadata, "--metadata")
    with connect() as api:
        print(json.dumps(api.call("PATCH", _path(device), body), ensure_ascii=False))


@app.command()
def approve(devices: Annotated[list[str], typer.Argument(help="Ids of devices in quarantine.")]) -> None:
    """Let devices take part that are in quarantine."""
    _admit(devices, approved=True)


@app.command()
def quarantine(devices: Annotated[list[str], typer.Argument(help="Ids of devices.")]) -> None:
    """Let devices not take part: their messages become dead letters, they are sent no commands."""
    _admit(devices, approved=False)


@app.command()
def delete(device: Device) -> None:
    """Delete a device with everything that is stored of it."""
    with connect() as api:
        api.call("DELETE", _path(device))
    print(f"{device} is deleted.")


@app.command()
def issue(device: Device) -> None:
    """Issue a credential. Its token is printed this once; the device connects with its id and this token."""
    with connect() as api:
        credential = api.post(f"{_path(device)}/credentials", {})
    terminal.console(stderr=True).print(f"Credential {credential['credential_id']}: user name {device}, password:")
    print(credential["token"])


@app.command()
def credentials(device: Device) -> None:
    """List a device's credentials."""
    with connect() as api:
        found = api.get(f"{_path(device)}/credentials")["credentials"]
    rows = [(one["credential_id"], one["created_at"]) for one in found]
    terminal.console().print(
        terminal.table(("credential", "issued"), rows) if rows else f"{device} has no credentials."
    )


@app.command()
def revoke(
    device: Device,
    credential: Annotated[str | None, typer.Option(help="Only this one.", show_default="all of them")] = None,
) -> None:
    """Revoke a device's credentials, and close its connections."""
    path = f"{_path(device)}/credentials" + (f"/{quote(credential, safe='')}" if credential else "")
    with connect() as api:
        print(f"{api.call('DELETE', path)['revoked']} revoked.")


def _path(device: str) -> str:
    return f"/api/v1/registry/{quote(device, safe='')}"


def _admit(devices: Iterable[str], *, approved: bool) -> None:
    with connect() as api:
        for device in devices:
            api.call("PUT", f"{_path(device)}/admission", {"approved": approved})


# ---------------------------------------------------------------------- files


class _Row(NamedTuple):
    where: str
    fields: dict[str, Any]
    columns: dict[str, str]
    """Where each field stands, for errors."""


def _rows(file: Path) -> Iterator[_Row]:
    """The rows of a file, read as they are needed. Raises BridgeError that says where it is wrong."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            first = lines.read(1)
            lines.seek(0)
            if first == "[":
                yield from _array(lines.read(), file)
            elif first == "{":
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        where = f"{file}, line {number}"
                        yield _Row(where, _object(line, where), {})
            else:
                yield from _table(lines, file)
    except OSError as error:
        raise BridgeError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BridgeError(f"{file} is not UTF-8: {error}") from error


def _array(text: str, file: Path) -> Iterator[_Row]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BridgeError(f"{file} is not JSON: {error}") from error
    for number, item in enumerate(found, 1):
        if not isinstance(item, dict):
            raise BridgeError(f"{file}, element {number}: not a JSON object")
        yield _Row(f"{file}, element {number}", item, {})


def _table(lines: Iterable[str], file: Path) -> Iterator[_Row]:
    reader = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if "device_id" not in header or len(set(header)) < len(header):
            raise BridgeError(f"{file}, line 1: the header must name each column once, and device_id among them")
        columns = {name: f"column {number} ({name})" for number, name in enumerate(header, 1)}
        for cells in reader:
            where = f"{file}, line {reader.line_num}"
            if not cells:
                continue
            if len(cells) != len(header):
                raise BridgeError(f"{where}: {len(cells)} columns; the header has {len(header)}")
            fields: dict[str, Any] = {
                name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip()
            }
            if "tags" in fields:
                fields["tags"] = fields["tags"].replace(",", " ").split()
            more = {name: fields.pop(name) for name in list(fields) if name not in COLUMNS}
            if "metadata" in fields:
                fields["metadata"] = _object(fields["metadata"], f"{where}, {columns['metadata']}")
            if more:
                fields["metadata"] = fields.get("metadata", {}) | more
            yield _Row(where, fields, columns)
    except csv.Error as error:
        raise BridgeError(f"{file}, line {reader.line_num}: {error}") from error


def _checked(rows: Iterable[_Row], profiles: list[str]) -> Iterator[dict[str, Any]]:
    """The rows' fields. Raises BridgeError that names line and column of the first one that cannot be imported."""
    import msgspec

    from bridge.registry import Entry

    seen: dict[str, str] = {}
    for where, fields, columns in rows:
        try:
            entry = msgspec.convert(fields, Entry)
            entry.check(profiles)
        except msgspec.ValidationError as error:
            raise BridgeError(f"{where}: {error}") from error
        except RefusedError as error:
            raise BridgeError(f"{where}, {columns.get(error.reason, error.reason)}: {error}") from error
        if entry.device_id in seen:
            raise BridgeError(f"{where}: {entry.device_id} stands in {seen[entry.device_id]} already")
        seen[entry.device_id] = where
        yield fields


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BridgeError(f"{where}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BridgeError(f"{where}: not a JSON object")
    return found
