"""The example settings file: every setting with its default and its reason, made from the model."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from bridge.settings import PREFIX, Settings
from bridge.settings.sources import section_of, table_of

HEAD = """\
# Every setting of the MQTT Agent Bridge with its default. Use this file with `mqtt-bridge serve --config FILE` or
# BRIDGE_CONFIG; a file of your own needs only the lines that differ. The environment has precedence: the setting
# `port` in [mqtt] is the variable BRIDGE_MQTT__PORT there, `data_dir` is BRIDGE_DATA_DIR.
# Made by `mqtt-bridge config --example`.
"""


def render() -> str:
    """The text of the file."""
    return HEAD + "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    sections = {}
    tables = {}
    for name, field in Settings.model_fields.items():
        section, table = section_of(field), table_of(field)
        if section is not None:
            sections[name] = section
        elif table is not None:
            tables[name] = table
        else:
            yield from _setting(name, field, f"{PREFIX}{name.upper()}")
    for name, section in sections.items():
        yield ""
        yield f"# {section.__doc__}"
        yield f"[{name}]"
        for inner, field in section.model_fields.items():
            yield from _setting(inner, field, f"{PREFIX}{name.upper()}__{inner.upper()}")
    for name, table in tables.items():
        yield ""
        yield from _comment(table.__doc__ or "")
        yield from _comment(f"In the environment {PREFIX}{name.upper()} holds them all as one JSON object.")
        yield f"# [{name}.NAME]"
        for inner, field in table.model_fields.items():
            yield "#"
            yield from _comment(f"{inner}: {field.description}")


def _setting(name: str, field: FieldInfo, variable: str) -> Iterator[str]:
    default = field.get_default(call_default_factory=True)
    yield ""
    yield from _comment(field.description or "")
    # TOML has no word for "not set".
    yield f"# {name} =   (not set; {variable})" if default is None else f"{name} = {_toml(default)}"


def _comment(text: str) -> Iterator[str]:
    return (f"# {line}" for line in textwrap.wrap(text, 108))


def _toml(value: Any) -> str:
    """A default as TOML writes it; strings, numbers and empty tables look as in JSON."""
    return json.dumps(str(value) if isinstance(value, Path) else value)
