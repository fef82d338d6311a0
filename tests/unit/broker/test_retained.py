"""Retained messages against a plain dictionary (MQTT 3.1.1, 3.3.1.3)."""

from __future__ import annotations

from operator import attrgetter

from hypothesis import given
from hypothesis import strategies as st

from bridge.broker.retained import Retained, RetainedTree
from bridge.broker.subscriptions import matches
from tests.unit.broker.test_subscriptions import filters, topics


@given(st.lists(st.tuples(topics, st.sampled_from([b"", b"1", b"2"])), max_size=30), filters)
def test_keeps_the_last_message_of_each_topic(messages: list[tuple[str, bytes]], topic_filter: str) -> None:
    tree = RetainedTree(1000)
    model: dict[str, Retained] = {}
    for topic, payload in messages:
        message = Retained(topic, payload, 1)
        assert tree.set(message)
        model[topic] = message
        if not payload:
            del model[topic]
    assert tree.count == len(model)
    expected = sorted((m for t, m in model.items() if matches(topic_filter, t)), key=attrgetter("topic"))
    assert sorted(tree.matching(topic_filter), key=attrgetter("topic")) == expected
    for topic in list(model):
        tree.set(Retained(topic, b"", 0))
    assert tree.count == 0
    assert tree.empty


def test_takes_no_further_topic_at_its_limit() -> None:
    tree = RetainedTree(2)
    assert tree.set(Retained("a", b"1", 0))
    assert tree.set(Retained("b", b"1", 0))
    assert not tree.set(Retained("c", b"1", 0))
    assert tree.set(Retained("a", b"2", 0)), "a topic that is kept may change"
    assert tree.set(Retained("b", b"", 0))
    assert tree.set(Retained("c", b"1", 0))
    assert [m.topic for m in tree.matching("#")] == ["a", "c"]
