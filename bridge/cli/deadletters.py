"""`mqtt-bridge deadletters …`: what was refused, handed in again or thrown away. Without a further word: the list."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

import typer

from bridge.cli import terminal
from bridge.cli.api import connect
from bridge.cli.completion import device_ids
from bridge.cli.send import UNSUCCESSFUL
from bridge.cli.terminal import JsonOption

PATH: Final = "/api/v1/dead-letters"
REPLAY_WITHIN: Final = 600.0
"""Seconds that up to a thousand letters may take."""

app = typer.Typer(help="Messages that were refused: list them, read one, hand them in again, drop them.")
Limit = Annotated[int, typer.Option(min=1, max=1_000, help="Show the latest so many.")]
Reason = Annotated[str | None, typer.Option(help="Only those refused for this reason.")]
Device = Annotated[str | None, typer.Option(help="Only this device's.", autocompletion=device_ids)]
Ids = Annotated[list[int] | None, typer.Argument(min=0, help="The letters' ids, as the list shows them.")]


@app.callback(invoke_without_command=True)
def deadletters(
    context: typer.Context,
    limit: Limit = 50,
    reason: Reason = None,
    device: Device = None,
    as_json: JsonOption = False,
) -> None:
    """List the messages that were refused, the latest first, with the reason."""
    if context.invoked_subcommand is None:
        list_(limit, reason, device, as_json)


@app.command("list")
def list_(limit: Limit = 50, reason: Reason = None, device: Device = None, as_json: JsonOption = False) -> None:
    """List them, the latest first, with the reason."""
    wanted = {"limit": limit, "reason": reason, "device": device}
    with connect() as api:
        letters = api.get(PATH, {name: value for name, value in wanted.items() if value is not None})["dead_letters"]
    if as_json:
        print(json.dumps(letters))
        return
    columns = ("id", "at", "reason", "topic", "error", "payload")
    rows = [
        (
            str(letter["id"]),
            terminal.local(letter["at"], "%Y-%m-%d %H:%M:%S"),
            letter["reason"],
            letter["topic"][:120],
            letter["error"],
            letter["payload"][:60],
        )
        for letter in letters
    ]
    terminal.console().print(terminal.table(columns, rows) if rows else "Nothing was refused.")


@app.command()
def show(letter: Annotated[int, typer.Argument(min=0, help="Its id.")], as_json: JsonOption = False) -> None:
    """Show one letter with all of its payload that was kept."""
    with connect() as api:
        found = api.get(f"{PATH}/{letter}")
    if as_json:
        print(json.dumps(found))
        return
    for name in ("at", "topic", "device_id", "reason", "error", "size"):
        print(f"{name:<10} {terminal.safe('' if found[name] is None else found[name])}")
    print()
    print(terminal.safe(found["payload"]))


@app.command()
def replay(
    letters: Ids = None,
    reason: Reason = None,
    device: Device = None,
    everything: Annotated[bool, typer.Option("--all", help="All that there are.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Hand letters in again, the oldest first: those with these ids, of a reason or device, or all.

    Exit code 0: each is taken now, or was known already. 3: some were refused again, lead nowhere, or are not there.
    """
    if bool(letters) + (reason is not None or device is not None) + everything != 1:
        raise typer.BadParameter("say which: ids, --reason and --device, or --all", param_hint="LETTERS")
    body: dict[str, Any] = {"ids": letters} if letters else {"everything": True}
    if reason is not None or device is not None:
        body = {"reason": reason, "device": device}
    with connect() as api:
        answer = api.call("POST", f"{PATH}/replay", body, wait=REPLAY_WITHIN)
    if as_json:
        print(json.dumps(answer))
    else:
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in answer["outcomes"].items())
        print(outcomes or "There was nothing to replay.")
        for left in answer["left"]:
            print(f"{left['id']} stays: {terminal.safe(left['detail'])}")
        for missing in answer["missing"]:
            print(f"{missing} is no dead letter (any more)")
    good = {"committed", "deduplicated"}
    if answer["missing"] or not good.issuperset(answer["outcomes"]):
        raise typer.Exit(UNSUCCESSFUL)


@app.command()
def drop(
    letters: Annotated[list[int], typer.Argument(min=0, help="The letters' ids, as the list shows them.")],
) -> None:
    """Throw letters away."""
    with connect() as api:
        for letter in letters:
            api.call("DELETE", f"{PATH}/{letter}")
    print(f"{len(letters)} dropped.")
