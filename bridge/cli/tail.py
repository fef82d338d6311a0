"""`mqtt-bridge tail`: what passes through the broker, live."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.text import Text

from bridge.cli import terminal
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
    "error": "red",
}


def tail(
    device: Annotated[str | None, typer.Option(help="Only this device's topics.")] = None,
    topic: Annotated[str | None, typer.Option(help="Any topic filter instead, such as `house/#`.")] = None,
    host: Host = None,
    port: Port = None,
    username: Username = None,
    password: Password = None,
) -> None:
    """Show messages as they pass through the broker, until Ctrl-C."""
    target, root = resolve(host, port, username, password, None)
    topic_filter = topic or (f"{root}/{device}/#" if device else f"{root}/#")
    terminal.run(_tail(target, topic_filter, f"{root}/"))


async def _tail(target: Target, topic_filter: str, prefix: str) -> None:
    import aiomqtt

    from bridge.simulate.client import client, heed_cancellation

    connected = False
    while True:
        try:
            async with client(target, "", window=1) as connection:
                granted = await connection.subscribe(topic_filter)
                # MQTT 3.1.1, 3.9.3: 0x80 is a refusal.
                if any((code if isinstance(code, int) else code.value) >= 0x80 for code in granted):
                    raise BridgeError(f"the broker does not grant a subscription to {topic_filter}")
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
    topic = message.topic.value
    payload = message.payload if isinstance(message.payload, bytes) else b""
    kind = topic.removeprefix(prefix).partition("/")[2].partition("/")[0] if topic.startswith(prefix) else ""
    text = terminal.safe(payload[:SHOWN].decode("utf-8", "backslashreplace"))
    more = f"… ({len(payload):,} bytes)" if len(payload) > SHOWN else ""
    now = datetime.now().astimezone().time().isoformat("milliseconds")
    line = Text.assemble((now, "dim"), " ", (terminal.safe(topic), COLOURS.get(kind, "bold")), " ", text, more)
    terminal.console().print(line, soft_wrap=True)
