"""Where settings come from: the only reader of environment and files, and what it says of a wrong one."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Any, Final, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, TomlConfigSettingsSource
from pydantic_settings.exceptions import SettingsError as SourceError

from bridge.errors import SettingsError
from bridge.settings.masking import masked
from bridge.settings.sections import Section

PREFIX: Final = "BRIDGE_"
CONFIG_VARIABLE: Final = "BRIDGE_CONFIG"
NOT_SETTINGS: Final = frozenset({CONFIG_VARIABLE, "BRIDGE_URL", "BRIDGE_TOKEN"})
"""Variables with our prefix that are not settings: where the TOML file is, and what the operator's commands use."""
VARIABLES: Final = ("environment ", ".env ")
"""Sources whose keys are variables, as they are named before the variable."""


def section_of(field: FieldInfo) -> type[Section] | None:
    """The group that a field holds, None if it is a setting by itself."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def table_of(field: FieldInfo) -> type[Section] | None:
    """The group of which a field holds any number by their names, as `profiles`; None for other fields."""
    kinds = get_args(field.annotation) if get_origin(field.annotation) is dict else ()
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def keys(cls: type[BaseSettings]) -> Iterator[str]:
    """The dotted key of every setting of `cls`; of groups by name, which are as many as there are, the key of all."""
    for name, field in cls.model_fields.items():
        section = section_of(field)
        if section is not None:
            yield from (f"{name}.{inner}" for inner in section.model_fields)
        else:
            yield name


def variable(key: str) -> str:
    """The environment variable of a setting; for one in a group that is one of many by their names, that of all."""
    levels = key.upper().split(".")
    return PREFIX + ("__".join(levels) if len(levels) < 3 else levels[0])


def origin(source: str, key: str) -> str:
    """Where a setting was found, as the user is told."""
    return source + variable(key) if source in VARIABLES else source


def layers(
    cls: type[BaseSettings], config: Path | None, overrides: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What each source says, the strongest first."""
    yield "command line", overrides
    try:
        environment, dotenv = EnvSettingsSource(cls), DotEnvSettingsSource(cls)
        for name, source in zip(VARIABLES, (environment, dotenv), strict=True):
            _check_variables(cls, name, source.env_vars)
            # Built anew from our own variables alone: whatever else is in a .env file belongs to others.
            yield name, EnvSettingsSource.__call__(source)
    except SourceError as error:
        # Raised only for the variables of whole groups and tables; the text names the field, never its value.
        raise SettingsError(f"{error}: a whole group or table in one variable must be JSON") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f".env is not UTF-8: {error}") from None
    named = os.environ.get(CONFIG_VARIABLE) or dotenv.env_vars.get(CONFIG_VARIABLE.lower())
    path = config or (Path(named) if named else None)
    if path is None:
        return
    if not path.is_file():
        raise SettingsError(f"{path}: there is no such settings file (--config or {CONFIG_VARIABLE})")
    try:
        yield str(path), TomlConfigSettingsSource(cls, path)()
    except (TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None


def _check_variables(cls: type[BaseSettings], source: str, variables: Mapping[str, str | None]) -> None:
    known = {variable(key): key for key in keys(cls)}
    groups = {name.rpartition("__")[0] for name in known if "__" in name}
    for given in variables:
        name = given.upper()
        if name.startswith(PREFIX) and name not in known and name not in groups and name not in NOT_SETTINGS:
            raise SettingsError(f"{source}{name}: there is no such setting{_nearest(name, [*known, *NOT_SETTINGS])}")


def leaves(cls: type[BaseSettings], values: Mapping[str, Any], source: str) -> Iterator[tuple[str, Any]]:
    """Each setting in a source's nested values by its dotted key. Raises SettingsError for an unknown one."""
    known = set(keys(cls))
    for name, value in values.items():
        field = cls.model_fields.get(name)
        table = None if field is None else table_of(field)
        if field is not None and section_of(field) is not None:
            inner = _inner(name, value, source)
        elif table is not None:
            inner = {}
            for group, settings in _inner(name, value, source).items():
                found = _inner(group, settings, source)
                _check_keys(found, {f"{group}.{key}" for key in table.model_fields}, source)
                yield from found.items()
        else:
            inner = {name: value}
        _check_keys(inner, known | set(cls.model_fields), source)
        yield from inner.items()


def _inner(name: str, value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingsError(f"{source.strip()}: {name} is a group of settings, not {value!r}")
    return {f"{name}.{key}": item for key, item in value.items()}


def _check_keys(given: Iterable[str], known: set[str], source: str) -> None:
    for key in given:
        if key not in known:
            raise SettingsError(f"{source.strip()}: {key}: there is no such setting{_nearest(key, known)}")


def _nearest(name: str, known: Iterator[str] | list[str] | set[str]) -> str:
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else "; `mqtt-bridge config` lists them all"


def put(merged: dict[str, Any], key: str, value: Any) -> None:
    """Put the value of a dotted key where the model expects it."""
    *groups, name = key.split(".")
    for group in groups:
        merged = merged.setdefault(group, {})
    merged[name] = value


def explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    """What is wrong with which setting, and where it was set."""
    lines = []
    for fault in error.errors():
        place = [str(part) for part in fault["loc"]]
        key = next((key for key in (".".join(place[:n]) for n in (3, 2, 1)) if key in origins), ".".join(place))
        what = fault["msg"].removeprefix("Value error, ")
        if not key:
            lines.append(what)
            continue
        given = masked(key, fault["input"])
        lines.append(f"{key} is {given!r} ({origins.get(key, 'default')}): {what[:1].lower()}{what[1:]}")
    return "; ".join(lines)
