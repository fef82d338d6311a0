"""The device twin: what a device is asked to be (desired), what it says it is (reported), and what lies between.

Both parts are JSON objects that are changed by merge patches (RFC 7396): members of the patch replace those of the
part, objects within objects are merged, `null` deletes. So no object in a part has a member that is null. Each part
has a version, which grows by one with every change of it. Pure: the clock is passed in.
"""

from __future__ import annotations

import enum
from typing import Any, Final, NamedTuple, final

import msgspec

from bridge.errors import RefusedError, VersionConflictError

Document = dict[str, Any]


class Part(enum.StrEnum):
    """Which half of a twin."""

    DESIRED = "desired"
    """Changed by operators."""
    REPORTED = "reported"
    """Changed by the device."""


class Limits(NamedTuple):
    """How large a part may become: bytes of compact JSON, and levels of objects and arrays within each other."""

    max_bytes: int = 32_768
    max_depth: int = 10


class Patch(NamedTuple):
    """A change that somebody asks for. `version`, if not None, is the version of desired that the sender knows: an
    operator's patch is meant for this version alone, a device wants to hear what has changed since."""

    changes: Document
    version: int | None = None


@final
class Twin(msgspec.Struct, frozen=True):
    """A twin as it stands. Versions are 0 and times (Unix seconds) None before the first change."""

    desired: Document = msgspec.field(default_factory=dict)
    desired_version: int = 0
    desired_at: float | None = None
    reported: Document = msgspec.field(default_factory=dict)
    reported_version: int = 0
    reported_at: float | None = None

    @property
    def delta(self) -> Document:
        """What desired asks that reported has not; empty when there is nothing to do."""
        return missing(self.desired, self.reported)

    def part(self, part: Part) -> Document:
        """One of the two parts."""
        return self.desired if part is Part.DESIRED else self.reported

    def patched(self, part: Part, patch: Patch, at: float, limits: Limits) -> Twin:
        """The twin after a patch of one part: itself when that changes nothing.

        Raises VersionConflictError when a patch of desired was made for another version than the present one, and
        RefusedError `twin_too_large`.
        """
        new = merge(self.part(part), patch.changes)
        unchanged = same(self.part(part), new)
        # A message may come twice (QoS 1): the second time it finds the version that it has made itself.
        again = unchanged and patch.version == self.desired_version - 1
        if part is Part.DESIRED and patch.version not in (None, self.desired_version) and not again:
            raise VersionConflictError(patch.version, self.desired_version)
        if unchanged:
            return self
        size = len(msgspec.json.encode(new))
        if size > limits.max_bytes:
            raise RefusedError("twin_too_large", f"{part} would have {size} bytes, of at most {limits.max_bytes}")
        if part is Part.DESIRED:
            return Twin(new, self.desired_version + 1, at, self.reported, self.reported_version, self.reported_at)
        return Twin(self.desired, self.desired_version, self.desired_at, new, self.reported_version + 1, at)


def decode(payload: bytes, limits: Limits) -> Patch:
    """The patch in a payload: a JSON object, whose member `version` is not part of the twin (see `Patch`).

    Raises RefusedError: `bad_patch`, `bad_version`, `twin_too_large`, `twin_too_deep`.
    """
    if len(payload) > limits.max_bytes:
        raise RefusedError("twin_too_large", f"the patch has {len(payload)} bytes, of at most {limits.max_bytes}")
    try:
        changes = _objects.decode(payload)
    except RecursionError as error:
        raise RefusedError("twin_too_deep", "the JSON is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RefusedError("bad_patch", f"a patch is a JSON object: {error}") from error
    version = changes.pop("version", None)
    if version is not None and (not isinstance(version, int) or isinstance(version, bool) or version < 0):
        raise RefusedError("bad_version", "version must be a whole number, 0 or more")
    depth = depth_of(changes)
    if depth > limits.max_depth:
        raise RefusedError("twin_too_deep", f"the patch has {depth} levels, of at most {limits.max_depth}")
    return Patch(changes, version)


def merge(target: Any, patch: Any) -> Any:
    """`target` after the merge patch (RFC 7396, 2). Neither is changed; the result may share values with both."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def difference(old: Document, new: Document) -> Document:
    """The smallest patch that makes `new` of `old`."""
    patch: Document = {name: None for name in old if name not in new}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            if deeper := difference(before, value):
                patch[name] = deeper
        elif name not in old or not same(before, value):
            patch[name] = value
    return patch


def missing(desired: Document, reported: Document) -> Document:
    """What `desired` asks that `reported` has not. What only `reported` has is the device's own affair."""
    asked: Document = {}
    for name, value in desired.items():
        there = reported.get(name)
        if isinstance(value, dict) and isinstance(there, dict):
            if deeper := missing(value, there):
                asked[name] = deeper
        elif name not in reported or not same(there, value):
            asked[name] = value
    return asked


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: unlike Python's `==`, true is not 1 and false not 0."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def depth_of(value: Any) -> int:
    """Levels of objects and arrays within each other: 0 for a number, 1 for {}, 2 for {"a": []}."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer)]
    return depth


_objects: Final = msgspec.json.Decoder(dict[str, Any])
