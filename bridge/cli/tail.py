"""`mqtt-bridge tail`: what passes through the broker, live."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from bridge.cli import terminal
from bridge.cli.completion import device_ids
from bridge.cli.target import Host, Password, Port, Username, resolve
from bridge.errors import BridgeError

if TYPE_CHECKING:
    import aiomqtt

    from bridge.simulate.client import Target

AGAIN_AFTER: Final = 2.0
SHOWN: Final = 2_000
"""Characters of a payload that are shown."""
COLOURS: Final = {
    "telemetry": "green",
    "event": "cyan",
    "command": "magenta",
    "presence": "yellow",
    "ping": "dim",
    "pong": "dim",
    "state": "blue",
    "error": "red",
}
KINDS: Final = tuple(COLOURS)


def tail(
    device: Annotated[str | None, typer.Option(help="Only this device's topics.", autocompletion=device_ids)] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only telemetry, event, state, command, presence, ping, pong or error; may be given again."),
    ] = None,
    topic: Annotated[str | None, typer.Option(help="Any topic filter instead, such as `house/#`.")] = None,
    host: Host = None,
    port: Port = None,
    username: Username = None,
    password: Password = None,
) -> None:
    """Show messages as they pass through the broker, until Ctrl-C."""
    target, root = resolve(host, port, username, password, None)
    terminal.run(_tail(target, [topic] if topic else filters(root, device, kind or []), f"{root}/"))


def filters(root: str, device: str | None, kinds: Sequence[str]) -> list[str]:
    """Topic filters for these kinds of messages of a device, or of all."""
    for kind in kinds:
        if kind not in KINDS:
            raise typer.BadParameter(f"{kind!r} is none of {', '.join(KINDS)}", param_hint="--kind")
    if not kinds:
        return [f"{root}/{device}/#" if device else f"{root}/#"]
    # `#` stands for the level above it, too [MQTT 3.1.1, 4.7.1.2].
    return [f"{root}/{device or '+'}/{kind}/#" for kind in dict.fromkeys(kinds)]


async def _tail(target: Target, topic_filters: Sequence[str], prefix: str) -> None:
    import aiomqtt

    from bridge.simulate.client import client, heed_cancellation

    connected = False
    while True:
        try:
            async with client(target, "", window=1) as connection:
                granted = await connection.subscribe([(topic_filter, 0) for topic_filter in topic_filters])
                # MQTT 3.1.1, 3.9.3: 0x80 is a refusal.
                if any((code if isinstance(code, int) else code.value) >= 0x80 for code in granted):
                    raise BridgeError(f"the broker does not grant a subscription to {', '.join(topic_filters)}")
                heed_cancellation()
                connected = True
                async for message in connection.messages:
                    _print(message, prefix)
        except aiomqtt.MqttError as error:
            where = f"{target.host}:{target.port}"
            if not connected:
                raise BridgeError(f"broker {where}: {error}") from error
            terminal.complain(f"broker {where}: {error}; connecting again")
            await asyncio.sleep(AGAIN_AFTER)


def _print(message: aiomqtt.Message, prefix: str) -> None:
    from rich.text import Text

    topic = message.topic.value
    payload = message.payload if isinstance(message.payload, bytes) else b""
    kind = topic.removeprefix(prefix).partition("/")[2].partition("/")[0] if topic.startswith(prefix) else ""
    text = terminal.safe(payload[:SHOWN].decode("utf-8", "backslashreplace"))
    more = f"… ({len(payload):,} bytes)" if len(payload) > SHOWN else ""
    now = datetime.now().astimezone().time().isoformat("milliseconds")
    line = Text.assemble((now, "dim"), " ", (terminal.safe(topic), COLOURS.get(kind, "bold")), " ", text, more)
    terminal.console().print(line, soft_wrap=True)
