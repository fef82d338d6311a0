"""Retained messages, found by filter without walking all of them (MQTT 3.1.1, 3.3.1.3). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, final


class Retained(NamedTuple):
    """The last retained message of a topic."""

    topic: str
    payload: bytes
    qos: int


@final
class _Node:
    __slots__ = ("children", "message")

    def __init__(self) -> None:
        self.children: dict[str, _Node] | None = None
        self.message: Retained | None = None


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
        node = self._root
        for level in message.topic.split("/"):
            if node.children is None:
                node.children = {}
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        self.count += node.message is None
        node.message = message
        return True

    def get(self, topic: str) -> Retained | None:
        """The message of one topic."""
        node = self._root
        for level in topic.split("/"):
            child = None if node.children is None else node.children.get(level)
            if child is None:
                return None
            node = child
        return node.message

    def matching(self, topic_filter: str) -> Iterable[Retained]:
        """The messages whose topics a filter matches [MQTT-3.3.1-6]."""
        if "+" in topic_filter or "#" in topic_filter:
            return _match(self._root, topic_filter.split("/"), 0)
        message = self.get(topic_filter)
        return () if message is None else (message,)

    def _clear(self, topic: str) -> None:
        path: list[tuple[dict[str, _Node], str]] = []
        node = self._root
        for level in topic.split("/"):
            children = node.children
            child = None if children is None else children.get(level)
            if children is None or child is None:
                return
            path.append((children, level))
            node = child
        self.count -= node.message is not None
        node.message = None
        for children, level in reversed(path):
            node = children[level]
            if node.message is not None or node.children:
                return
            del children[level]


def _match(node: _Node, levels: list[str], depth: int) -> Iterator[Retained]:
    if depth == len(levels):
        if node.message is not None:
            yield node.message
        return
    level = levels[depth]
    children = node.children or {}
    if level == "#" and node.message is not None:
        yield node.message  # "sport/#" also matches "sport" (4.7.1.2)
    if level in ("+", "#"):
        for name, child in children.items():
            if depth or not name.startswith("$"):  # [MQTT-4.7.2-1]
                yield from _all(child) if level == "#" else _match(child, levels, depth + 1)
    elif (found := children.get(level)) is not None:
        yield from _match(found, levels, depth + 1)


def _all(node: _Node) -> Iterator[Retained]:
    if node.message is not None:
        yield node.message
    for child in (node.children or {}).values():
        yield from _all(child)
