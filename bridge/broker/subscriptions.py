"""The topic tree: which subscriptions match a topic, at a cost that does not grow with their number. Pure."""

from __future__ import annotations

from typing import Generic, TypeVar, final

S = TypeVar("S")


@final
class _Node(Generic[S]):
    __slots__ = ("children", "subscribers")

    def __init__(self) -> None:
        self.children: dict[str, _Node[S]] | None = None
        self.subscribers: dict[S, int] | None = None


@final
class SubscriptionTree(Generic[S]):
    """Filters and who subscribed to them at which QoS. A look-up costs what the topic's levels and the matching
    subscriptions cost (MQTT 3.1.1, 4.7)."""

    __slots__ = ("_root", "count", "version")

    def __init__(self) -> None:
        self._root: _Node[S] = _Node()
        self.count = 0
        self.version = 0
        """Changes whenever a result of `match` may."""

    def add(self, topic_filter: str, subscriber: S, qos: int) -> None:
        """Subscribe, or change the QoS of a subscription that is there [MQTT-3.8.4-3]."""
        node = self._root
        for level in topic_filter.split("/"):
            if node.children is None:
                node.children = {}
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        if node.subscribers is None:
            node.subscribers = {}
        if subscriber not in node.subscribers:
            self.count += 1
        node.subscribers[subscriber] = qos
        self.version += 1

    def remove(self, topic_filter: str, subscriber: S) -> bool:
        """Unsubscribe; False if there was no such subscription. Leaves no empty branch behind."""
        path: list[tuple[_Node[S], str]] = []
        node = self._root
        for level in topic_filter.split("/"):
            child = None if node.children is None else node.children.get(level)
            if child is None:
                return False
            path.append((node, level))
            node = child
        if node.subscribers is None or subscriber not in node.subscribers:
            return False
        del node.subscribers[subscriber]
        if not node.subscribers:
            node.subscribers = None
        for parent, level in reversed(path):
            if node.subscribers is not None or node.children:
                break
            if parent.children is not None:
                del parent.children[level]
            node = parent
        self.count -= 1
        self.version += 1
        return True

    @property
    def empty(self) -> bool:
        """Whether not even a branch is left."""
        return self._root.children is None or not self._root.children

    def match(self, topic: str) -> dict[S, int]:
        """Who gets a message on `topic`, each once, at the highest QoS of their matching filters [MQTT-3.3.5-1]."""
        found: dict[S, int] = {}
        levels = topic.split("/")
        # A topic that begins with $ is not matched by a filter that begins with a wildcard [MQTT-4.7.2-1].
        nodes = [self._root]
        for depth, level in enumerate(levels):
            below: list[_Node[S]] = []
            wild = depth > 0 or not level.startswith("$")
            for node in nodes:
                children = node.children
                if children is None:
                    continue
                child = children.get(level)
                if child is not None:
                    below.append(child)
                if wild:
                    child = children.get("+")
                    if child is not None:
                        below.append(child)
                    child = children.get("#")
                    if child is not None and child.subscribers:
                        _merge(found, child.subscribers)
            nodes = below
            if not nodes:
                return found
        for node in nodes:
            if node.subscribers:
                _merge(found, node.subscribers)
            # "sport/#" also matches "sport" (4.7.1.2).
            if node.children is not None:
                child = node.children.get("#")
                if child is not None and child.subscribers:
                    _merge(found, child.subscribers)
        return found

    def exact(self, topic: str) -> dict[S, int]:
        """Who subscribed to `topic` itself, without wildcards."""
        node = self._root
        for level in topic.split("/"):
            child = None if node.children is None else node.children.get(level)
            if child is None:
                return {}
            node = child
        return node.subscribers or {}


def _merge(found: dict[S, int], subscribers: dict[S, int]) -> None:
    for subscriber, qos in subscribers.items():
        if found.get(subscriber, -1) < qos:
            found[subscriber] = qos


def matches(topic_filter: str, topic: str) -> bool:
    """Whether one filter matches one topic (MQTT 3.1.1, 4.7)."""
    if topic[:1] == "$" and topic_filter[:1] in ("+", "#"):
        return False
    return contains(topic_filter, topic)


def contains(outer: str, inner: str) -> bool:
    """Whether every topic that the filter `inner` matches is matched by the filter `outer`."""
    wide, narrow = outer.split("/"), inner.split("/")
    for index, level in enumerate(wide):
        if level == "#":
            return True
        if index >= len(narrow):
            return False
        if narrow[index] == "#" or (level not in ("+", narrow[index])):
            return False
    # "a/#" is not contained in "a" though "a" is in "a/#".
    return len(wide) == len(narrow)
