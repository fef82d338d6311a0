"""`mqtt-bridge tokens`: who may use the API. Works on the database itself: beside a running bridge, and without one."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeVar

import typer

from bridge.cli import terminal
from bridge.cli.terminal import ConfigOption
from bridge.errors import BridgeError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from bridge.settings import Settings
    from bridge.storage.database import Database

T = TypeVar("T")

WHO: Final = "command line"

app = typer.Typer(help="Who may use the API: its tokens and their roles.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="What the token is for, or whom.")]


@app.command()
def add(
    name: Name,
    role: Annotated[
        Literal["viewer", "operator", "admin"],
        typer.Option(help="viewer reads; operator also commands; admin also changes devices, tokens, settings."),
    ] = "viewer",
    config: ConfigOption = None,
) -> None:
    """Make a token. It is printed this once and stored only as a digest."""
    from bridge import tokens
    from bridge.settings import Settings
    from bridge.storage import tokens as stored

    secret = tokens.mint()
    token = tokens.Token(name, tokens.Role(role), tokens.digest(secret), time.time())

    settings = Settings.load(config)

    async def change(connection: AsyncConnection) -> None:
        await stored.add_token(connection, token)
        await _record(connection, settings, "tokens add", name, role)

    terminal.run(_with_database(settings, lambda database: database.write(change)))
    print(secret)


@app.command("list")
def list_(config: ConfigOption = None) -> None:
    """List the tokens: role, when made, used last, revoked."""
    from bridge.settings import Settings
    from bridge.storage import tokens as stored

    found = terminal.run(_with_database(Settings.load(config), lambda database: database.read(stored.list_tokens)))
    rows = [
        (token.name, token.role, _local(token.created_at), _local(token.used_at), _local(token.revoked_at))
        for token in found
    ]
    terminal.console().print(
        terminal.table(("token", "role", "made", "used", "revoked"), rows) if rows else "There are no tokens."
    )


@app.command()
def revoke(name: Name, config: ConfigOption = None) -> None:
    """End a token. A running bridge knows within a few seconds."""
    from bridge.settings import Settings
    from bridge.storage import tokens as stored

    settings = Settings.load(config)

    async def change(connection: AsyncConnection) -> bool:
        found = await stored.revoke_token(connection, name, time.time())
        if found:
            await _record(connection, settings, "tokens revoke", name, "")
        return found

    if not terminal.run(_with_database(settings, lambda database: database.write(change))):
        raise BridgeError(f"there is no token {name} that is still good; `mqtt-bridge tokens list` shows them")
    print(f"{name} is revoked.")


async def _with_database(settings: Settings, work: Callable[[Database], Awaitable[T]]) -> T:
    from bridge.storage import migrate as schema
    from bridge.storage.database import Database

    url = settings.database_url
    if await schema.current(url) != await schema.head():
        raise BridgeError("the database's schema is not this version's: run `mqtt-bridge migrate`, or start the bridge")
    database = await Database.open(url, pool_size=1, exclusive=False)
    try:
        return await work(database)
    finally:
        await database.close()


async def _record(connection: AsyncConnection, settings: Settings, action: str, target: str, detail: str) -> None:
    from bridge.storage import audit

    line = audit.AuditLine(time.time(), WHO, "", action, target, detail)
    await audit.record(connection, line, settings.http.audit_lines)


def _local(moment: float | None) -> str:
    return "" if moment is None else datetime.fromtimestamp(moment, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
