"""Retained messages, found by filter without walking all of them (MQTT 3.1.1, 3.3.1.3). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import final

import msgspec

from bridge.broker.subscriptions import has_wildcard, matches


@final
class Retained(msgspec.Struct, frozen=True, gc=False):
    """The last retained message of a topic. There is one for each device, and none is part of a cycle."""

    topic: str
    payload: bytes
    qos: int


@final
class _Node:
    """A level of topics with several messages below it, or one at it and others below. Where a branch holds only one
    message it is that message, however many levels its topic has: ten thousand devices with a presence each cost an
    entry each, not a branch."""

    __slots__ = ("children", "message")

    def __init__(self) -> None:
        self.children: dict[str, _Node | Retained] = {}
        self.message: Retained | None = None

    def put(self, message: Retained, levels: list[str], depth: int) -> Retained | None:
        """Keep a message whose topic has `levels`, of which the first `depth` lead here; returns what it replaces."""
        node = self
        while depth < len(levels):
            level = levels[depth]
            depth += 1
            child = node.children.get(level)
            if child is None or (isinstance(child, Retained) and child.topic == message.topic):
                node.children[level] = message
                return child
            if isinstance(child, Retained):
                alone = child
                child = node.children[level] = _Node()
                child.put(alone, alone.topic.split("/"), depth)
            node = child
        before, node.message = node.message, message
        return before


@final
class RetainedTree:
    """At most one message per topic, at most `limit` in all; further topics are not retained."""

    __slots__ = ("_limit", "_root", "count")

    def __init__(self, limit: int) -> None:
        self._root = _Node()
        self._limit = limit
        self.count = 0

    @property
    def empty(self) -> bool:
        """Whether not even a branch is left."""
        return not self._root.children

    def set(self, message: Retained) -> bool:
        """Keep a message in place of the topic's last one [MQTT-3.3.1-5]; an empty payload clears it
        [MQTT-3.3.1-10], [MQTT-3.3.1-11]. False if there is no room for another topic."""
        if not message.payload:
            self._clear(message.topic)
            return True
        if self.count >= self._limit and self.get(message.topic) is None:
            return False
        self.count += self._root.put(message, message.topic.split("/"), 0) is None
        return True

    def get(self, topic: str) -> Retained | None:
        """The message of one topic."""
        node = self._root
        for level in topic.split("/"):
            child = node.children.get(level)
            if child is None:
                return None
            if isinstance(child, Retained):
                return child if child.topic == topic else None
            node = child
        return node.message

    def matching(self, topic_filter: str) -> Iterable[Retained]:
        """The messages whose topics a filter matches [MQTT-3.3.1-6]."""
        if has_wildcard(topic_filter):
            return _match(self._root, topic_filter, topic_filter.split("/"), 0)
        message = self.get(topic_filter)
        return () if message is None else (message,)

    def _clear(self, topic: str) -> None:
        path: list[tuple[_Node, str]] = []
        node = self._root
        for level in topic.split("/"):
            path.append((node, level))
            child = node.children.get(level)
            if child is None:
                return
            if isinstance(child, Retained):
                if child.topic != topic:
                    return
                break
            node = child
        else:
            if node.message is None:
                return
            node.message = None
            if node.children:
                self.count -= 1
                return
        self.count -= 1
        for parent, level in reversed(path):
            del parent.children[level]
            if parent.children or parent.message is not None:
                return


def _match(node: _Node, topic_filter: str, levels: list[str], depth: int) -> Iterator[Retained]:
    if depth == len(levels):
        if node.message is not None:
            yield node.message
        return
    level = levels[depth]
    if level == "#" and node.message is not None:
        yield node.message  # "sport/#" also matches "sport" (4.7.1.2)
    if level in ("+", "#"):
        children = [
            child for name, child in node.children.items() if depth or not name.startswith("$")
        ]  # [MQTT-4.7.2-1]
    else:
        found = node.children.get(level)
        children = [] if found is None else [found]
    for child in children:
        if isinstance(child, Retained):
            if level == "#" or matches(topic_filter, child.topic):
                yield child
        elif level == "#":
            yield from _all(child)
        else:
            yield from _match(child, topic_filter, levels, depth + 1)


def _all(node: _Node) -> Iterator[Retained]:
    if node.message is not None:
        yield node.message
    for child in node.children.values():
        if isinstance(child, Retained):
            yield child
        else:
            yield from _all(child)
