"""Which broker `simulate` and `tail` connect to: what the options say, else what the settings say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bridge.simulate.client import Target

Host = Annotated[str | None, typer.Option(help="The broker's address.", show_default="from the settings")]
Port = Annotated[
    int | None, typer.Option(min=1, max=65535, help="The broker's port.", show_default="from the settings")
]
Username = Annotated[str | None, typer.Option(envvar="MQTT_USERNAME", help="Name to log in with.")]
Password = Annotated[
    str | None, typer.Option(envvar="MQTT_PASSWORD", help="Its password; others can see it on the command line.")
]


def resolve(
    host: str | None, port: int | None, username: str | None, password: str | None, root: str | None
) -> tuple[Target, str]:
    """The broker, and the root of the bridge's topics. Raises SettingsError."""
    from bridge.settings import Settings
    from bridge.simulate.client import Target

    if host is None or port is None or root is None:
        settings = Settings.load()
        host = reachable(settings.mqtt.host) if host is None else host
        port = port or settings.mqtt.port
        root = root or settings.topic_root
    return Target(host, port, username, password), root


def reachable(host: str) -> str:
    """The address to connect to where a server listens on `host`: all addresses include the loopback."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - looked up, not listened on
