"""The topic tree against the plainest reading of the standard's matching rules (MQTT 3.1.1, 4.7)."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.broker.subscriptions import SubscriptionTree, contains, matches

levels = st.sampled_from(["a", "b", "", "$x"])
topics = st.lists(levels, min_size=1, max_size=4).map("/".join)
filters = st.builds(
    lambda head, tail: "/".join([*head, *tail]) or "+",
    st.lists(st.one_of(levels, st.just("+")), max_size=3),
    st.sampled_from([[], ["#"]]),
)


def plainly(topic_filter: str, topic: str) -> bool:
    """Whether they match, by a regular expression."""
    if topic.startswith("$") and topic_filter[0:1] in ("+", "#"):
        return False  # [MQTT-4.7.2-1]
    if topic_filter == "#":
        return True
    many = topic_filter.endswith("/#")
    pattern = re.escape(topic_filter.removesuffix("/#")).replace(r"\+", "[^/]*")
    return re.fullmatch(pattern + ("(/.*)?" if many else ""), topic) is not None


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        # The examples of 4.7.1.2 and 4.7.1.3
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/tennis/player1/#", "sport/tennis/player10", False),
        ("sport/#", "sport", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/monitor/Clients", False),
        ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/monitor/Clients", True),
        ("ACCOUNTS", "Accounts", False),
    ],
)
def test_examples_of_the_standard(topic_filter: str, topic: str, expected: bool) -> None:
    assert plainly(topic_filter, topic) is expected
    assert matches(topic_filter, topic) is expected
    tree: SubscriptionTree[str] = SubscriptionTree()
    tree.add(topic_filter, "me", 1)
    assert bool(tree.match(topic)) is expected


Operation = tuple[bool, str, int, int]


@given(st.lists(st.tuples(st.booleans(), filters, st.integers(0, 3), st.integers(0, 2)), max_size=30), topics)
def test_finds_what_a_walk_over_all_filters_finds(operations: list[Operation], topic: str) -> None:
    tree: SubscriptionTree[int] = SubscriptionTree()
    model: dict[tuple[str, int], int] = {}
    for add, topic_filter, subscriber, qos in operations:
        if add:
            tree.add(topic_filter, subscriber, qos)
            model[topic_filter, subscriber] = qos
        else:
            assert tree.remove(topic_filter, subscriber) is ((topic_filter, subscriber) in model)
            model.pop((topic_filter, subscriber), None)
    expected: dict[int, int] = {}
    for (topic_filter, subscriber), qos in model.items():
        if plainly(topic_filter, topic):
            expected[subscriber] = max(qos, expected.get(subscriber, 0))
    assert tree.match(topic) == expected
    assert tree.count == len(model)
    assert tree.exact(topic) == {s: q for (f, s), q in model.items() if f == topic}


@given(st.lists(st.tuples(filters, st.integers(0, 3)), max_size=20, unique=True))
def test_leaves_nothing_behind(subscriptions: list[tuple[str, int]]) -> None:
    tree: SubscriptionTree[int] = SubscriptionTree()
    for topic_filter, subscriber in subscriptions:
        tree.add(topic_filter, subscriber, 0)
    for topic_filter, subscriber in subscriptions:
        assert tree.remove(topic_filter, subscriber)
    assert tree.count == 0
    assert tree.empty


@given(filters, filters, st.lists(topics, max_size=20))
def test_a_contained_filter_matches_nothing_more(outer: str, inner: str, some: list[str]) -> None:
    if contains(outer, inner):
        assert all(matches(outer, t) for t in some if matches(inner, t) and not t.startswith("$"))


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("devices/+", "devices/#", False),
        ("devices/#", "devices/+", True),
        ("devices/#", "devices", True),
        ("devices/#", "#", False),
        ("devices/a/#", "devices/+/x", False),
        ("devices/a/+", "devices/a/b", True),
        ("devices/a", "devices/a/#", False),
        ("devices/+", "devices/+", True),
        ("a/b", "a/b", True),
    ],
)
def test_containment(outer: str, inner: str, expected: bool) -> None:
    assert contains(outer, inner) is expected


@pytest.mark.parametrize("topic_filter", ["a/+", "#"])
def test_the_version_changes_with_the_tree(topic_filter: str) -> None:
    tree: SubscriptionTree[str] = SubscriptionTree()
    before = tree.version
    tree.add(topic_filter, "me", 0)
    assert tree.version != before
    before = tree.version
    tree.remove(topic_filter, "me")
    assert tree.version != before
    before = tree.version
    assert not tree.remove(topic_filter, "me")
    assert tree.version == before


def test_a_device_that_comes_invalidates_nothing() -> None:
    tree: SubscriptionTree[str] = SubscriptionTree()
    before = tree.version
    tree.add("devices/d/ping", "d", 0)
    assert tree.version == before
    assert tree.exact("devices/d/ping") == {"d": 0}
