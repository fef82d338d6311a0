"""Which settings are secrets, and how their values may be shown."""

from __future__ import annotations

import re
from typing import Any, Final

MASK: Final = "********"
SECRETS: Final = ("http.token", "database.url", "mqtt.plugins")
"""Settings that are, or hold, secrets."""


def masked(key: str, value: Any) -> Any:
    """`value` as it may be shown: neither secrets, nor the password in a database URL, nor what a plugin is told, as it
    may hold secrets that cannot be told from the rest."""
    if key == "mqtt.plugins" and isinstance(value, dict):
        return dict.fromkeys(value, MASK)
    if key.startswith("sinks."):
        name = key.rpartition(".")[2]
        if name in ("secret", "options") and value:
            return MASK
        return re.sub(r"(://[^/:@]*):.*@", rf"\1:{MASK}@", value) if name == "url" and isinstance(value, str) else value
    if key == "database.url" and isinstance(value, str):
        # To the last @: a password may hold one that is not quoted.
        value = re.sub(r"(://[^/:@]*):.*@", rf"\1:{MASK}@", value)
        return re.sub(r"([?&][^=&]*password=)[^&]*", rf"\1{MASK}", value, flags=re.IGNORECASE)
    return MASK if key in SECRETS and value is not None else value
