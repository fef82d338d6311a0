"""Twins: merge patches as RFC 7396 has them, what is missing, what has changed, versions and limits."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import RefusedError, VersionConflictError
from bridge.twin import Limits, Part, Patch, Twin, decode, depth_of, difference, merge, missing, same

APPENDIX_A: list[tuple[Any, Any, Any]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]
"""RFC 7396, appendix A: original, patch, result."""

SECTION_3 = (
    {
        "title": "Goodbye!",
        "author": {"givenName": "John", "familyName": "Doe"},
        "tags": ["example", "sample"],
        "content": "This will be unchanged",
    },
    {"title": "Hello!", "phoneNumber": "+01-123-456-7890", "author": {"familyName": None}, "tags": ["example"]},
    {
        "title": "Hello!",
        "author": {"givenName": "John"},
        "tags": ["example"],
        "content": "This will be unchanged",
        "phoneNumber": "+01-123-456-7890",
    },
)
"""RFC 7396, 3: the worked example."""

scalars = st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, 2.5]) | st.text("ab", max_size=2)
names = st.sampled_from(["a", "b", "c", "version"])
with_null = st.recursive(
    st.none() | scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
)
"""Any JSON, from so few names and values that documents have much in common."""
patches = st.dictionaries(names, with_null, max_size=4)
documents = patches.map(lambda patch: merge({}, patch))
"""What merge patches can make: no object has a member that is null (arrays are kept as they come)."""


@pytest.mark.parametrize(("original", "patch", "result"), [*APPENDIX_A, SECTION_3])
def test_the_examples_of_the_rfc(original: Any, patch: Any, result: Any) -> None:
    before = copy.deepcopy((original, patch))
    assert same(merge(original, patch), result)
    assert (original, patch) == before, "neither is changed"


@given(documents, patches)
def test_a_patch_twice_is_a_patch_once(document: Any, patch: Any) -> None:
    once = merge(document, patch)
    assert same(merge(once, patch), once)


@given(documents, documents)
def test_the_difference_leads_from_one_to_the_other(old: Any, new: Any) -> None:
    patch = difference(old, new)
    assert same(merge(old, patch), new)
    assert (patch == {}) == same(old, new)


@given(documents, documents)
def test_a_device_that_does_what_is_missing_has_nothing_missing(desired: Any, reported: Any) -> None:
    delta = missing(desired, reported)
    done = merge(reported, delta)
    assert missing(desired, done) == {}
    # It asks for nothing that is there: none of its members could be left out.
    for name in delta:
        rest = {other: value for other, value in delta.items() if other != name}
        assert missing(desired, merge(reported, rest)) != {}


@given(documents)
def test_nothing_is_missing_when_both_are_the_same(document: Any) -> None:
    assert missing(document, document) == {}
    assert difference(document, copy.deepcopy(document)) == {}


@given(with_null, with_null)
def test_two_values_are_the_same_when_their_json_is(one: Any, other: Any) -> None:
    def canonical(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: canonical(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [canonical(inner) for inner in value]
        return ("bool", value) if isinstance(value, bool) else value

    assert same(one, other) == (canonical(one) == canonical(other))
    assert not same(True, 1)
    assert not same([0], [False])
    assert same(1, 1.0)


def test_null_deletes_and_versions_count_changes_only() -> None:
    limits = Limits()
    twin = Twin().patched(Part.DESIRED, Patch({"led": {"on": True, "colour": "red"}}), 10.0, limits)
    assert (twin.desired_version, twin.desired_at) == (1, 10.0)
    assert twin.patched(Part.DESIRED, Patch({"led": {"on": True}}), 11.0, limits) is twin
    twin = twin.patched(Part.DESIRED, Patch({"led": {"colour": None}}), 12.0, limits)
    assert (twin.desired, twin.desired_version) == ({"led": {"on": True}}, 2)
    assert twin.delta == {"led": {"on": True}}
    twin = twin.patched(Part.REPORTED, Patch({"led": {"on": True, "volts": 3}}), 13.0, limits)
    assert (twin.delta, twin.reported_version, twin.desired_version) == ({}, 1, 2)


def test_a_patch_for_another_version_is_a_conflict_unless_it_is_the_same_patch_again() -> None:
    limits = Limits()
    patch = Patch({"a": 1}, 0)
    twin = Twin().patched(Part.DESIRED, patch, 1.0, limits)
    assert twin.patched(Part.DESIRED, patch, 2.0, limits) is twin
    with pytest.raises(VersionConflictError) as conflict:
        twin.patched(Part.DESIRED, Patch({"a": 2}, 0), 2.0, limits)
    assert (conflict.value.expected, conflict.value.version, conflict.value.reason) == (0, 1, "version_conflict")
    later = twin.patched(Part.DESIRED, Patch({"b": 1}, 1), 2.0, limits)
    with pytest.raises(VersionConflictError):
        later.patched(Part.DESIRED, patch, 3.0, limits)
    # The device's version says what it knows. It is no condition.
    assert later.patched(Part.REPORTED, Patch({"a": 1}, 99), 3.0, limits).reported == {"a": 1}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "bad_patch"),
        (b"[]", "bad_patch"),
        (b"null", "bad_patch"),
        (b"\xff", "bad_patch"),
        (b'{"a": NaN}', "bad_patch"),
        (b'{"a": "\\ud800"}', "bad_patch"),
        (b'{"version": -1}', "bad_version"),
        (b'{"version": true}', "bad_version"),
        (b'{"version": "3"}', "bad_version"),
        (b'{"version": 1.0}', "bad_version"),
        (b'{"a": {"b": {"c": {}}}}', "twin_too_deep"),
        (b'{"a": [[[1]]]}', "twin_too_deep"),
        (b'{"a":' * 5000, "twin_too_large"),
        (b'{"a": "' + b"x" * 200 + b'"}', "twin_too_large"),
    ],
)
def test_what_is_no_patch_is_refused(payload: bytes, reason: str) -> None:
    with pytest.raises(RefusedError) as refused:
        decode(payload, Limits(max_bytes=200, max_depth=3))
    assert refused.value.reason == reason


def test_json_that_is_nested_beyond_all_measure_is_refused() -> None:
    with pytest.raises(RefusedError) as refused:
        decode(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, Limits(max_bytes=10_000_000))
    assert refused.value.reason == "twin_too_deep"


def test_a_part_does_not_grow_beyond_its_limit() -> None:
    limits = Limits(max_bytes=100)
    twin = Twin().patched(Part.REPORTED, decode(b'{"a": "%s"}' % (b"x" * 60), limits), 1.0, limits)
    with pytest.raises(RefusedError) as refused:
        twin.patched(Part.REPORTED, decode(b'{"b": "%s"}' % (b"x" * 60), limits), 1.0, limits)
    assert refused.value.reason == "twin_too_large"
    assert twin.patched(Part.REPORTED, Patch({"a": None}), 1.0, limits).reported == {}


@given(st.binary(max_size=60) | patches.map(msgspec.json.encode))
def test_any_bytes_are_a_patch_or_refused(payload: bytes) -> None:
    try:
        patch = decode(payload, Limits())
    except RefusedError:
        return
    assert "version" not in patch.changes
    twin = Twin().patched(Part.REPORTED, patch, 1.0, Limits())
    assert msgspec.json.decode(msgspec.json.encode(twin.reported)) == twin.reported


def test_depth() -> None:
    values: list[Any] = [1, {}, {"a": []}, [[[]]], {"a": 1, "b": {"c": [1]}}]
    assert [depth_of(value) for value in values] == [0, 1, 2, 3, 3]
