"""What a shell completes beside commands and options: the ids of the bridge's devices."""

from __future__ import annotations

from typing import Final

from bridge.cli.api import connect
from bridge.errors import BridgeError

OFFERED: Final = 50
"""Ids at most: more than these nobody reads."""


def device_ids(incomplete: str) -> list[str]:
    """The first ids that begin so; none if no bridge answers: who presses Tab is not told of errors."""
    wanted = {"limit": OFFERED} | ({"prefix": incomplete} if incomplete else {})
    try:
        with connect() as api:
            return [device["device_id"] for device in api.get("/api/v1/devices", wanted)["devices"]]
    except BridgeError:
        return []
