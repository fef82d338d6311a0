"""What a profile expects of its devices' readings, as JSON Schema. Pure."""

from __future__ import annotations

from typing import Any, Final, final

import jsonschema_rs
import msgspec

from bridge.errors import RefusedError
from bridge.readings import Reading

EVERY_STREAM: Final = "*"
"""The stream of a schema that holds for those without one of their own."""


@final
class Schema:
    """A JSON Schema, compiled once."""

    __slots__ = ("_validator",)

    def __init__(self, document: Any) -> None:
        """Raises ValueError for what is no JSON Schema."""
        self._validator = jsonschema_rs.validator_for(document)

    def check(self, readings: Reading | list[Reading]) -> None:
        """Raises RefusedError `schema` with the place of the first wrong field (a JSON pointer, RFC 6901) and what was
        expected there."""
        if isinstance(readings, Reading):
            self._check(readings.payload, "")
            return
        for index, reading in enumerate(readings):
            self._check(reading.payload, f"/{index}")

    def fault(self, value: Any) -> str | None:
        """The place of the first wrong field of a JSON value, and what was expected there; None if none is wrong."""
        fault = next(self._validator.iter_errors(value), None)
        if fault is None:
            return None
        pointer = "".join(f"/{_escaped(part)}" for part in fault.instance_path)
        return f"{pointer or '/'}: {fault.message[:500]}"

    def _check(self, payload: str, place: str) -> None:
        try:
            value = msgspec.json.decode(payload)
        except (msgspec.DecodeError, RecursionError) as error:
            raise RefusedError("schema", f"{place or '/'}: {error}") from error
        fault = self.fault(value)
        if fault is not None:
            raise RefusedError("schema", f"{place}{fault}")


def _escaped(part: str | int) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")
