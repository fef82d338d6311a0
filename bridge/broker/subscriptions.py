"""The topic tree: which subscriptions match a topic, at a cost that does not grow with their number. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Generic, NamedTuple, TypeVar, final

S = TypeVar("S")


@final
class _Node(Generic[S]):
    __slots__ = ("children", "subscribers")

    def __init__(self) -> None:
        self.children: dict[str, _Node[S]] | None = None
        self.subscribers: dict[S, int] | None = None


class _Only(NamedTuple, Generic[S]):
    # Who alone subscribed to a topic: a third of what a dictionary takes, and most topics have one subscriber.
    subscriber: S
    qos: int


NOBODY: Final[Mapping[Any, int]] = MappingProxyType({})


@final
class SubscriptionTree(Generic[S]):
    """Filters, and who subscribed to them at which QoS (MQTT 3.1.1, 4.7).

    Filters without wildcards are kept flat: ten thousand devices that each subscribe to a topic of their own cost a
    dictionary entry each and are found with one look. Only filters with wildcards form a tree, and only they change
    `version`: what was found for a topic in the tree stays true while devices come and go.
    """

    __slots__ = ("_exact", "_root", "count", "version")

    def __init__(self) -> None:
        self._exact: dict[str, _Only[S] | dict[S, int]] = {}
        self._root: _Node[S] = _Node()
        self.count = 0
        self.version = 0
        """Changes whenever a result of `wild` may."""

    def add(self, topic_filter: str, subscriber: S, qos: int) -> None:
        """Subscribe, or change the QoS of a subscription that is there [MQTT-3.8.4-3]."""
        if has_wildcard(topic_filter):
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
            subscribers = node.subscribers
            self.version += 1
        else:
            known = self._exact.get(topic_filter)
            if known is None:
                self._exact[topic_filter] = _Only(subscriber, qos)
                self.count += 1
                return
            subscribers = known if isinstance(known, dict) else {known.subscriber: known.qos}
            self._exact[topic_filter] = subscribers
        self.count += subscriber not in subscribers
        subscribers[subscriber] = qos

    def remove(self, topic_filter: str, subscriber: S) -> bool:
        """Unsubscribe; False if there was no such subscription. Leaves no empty branch behind."""
        if has_wildcard(topic_filter):
            removed = self._remove_wild(topic_filter, subscriber)
        else:
            known = self._exact.get(topic_filter)
            if isinstance(known, dict):
                removed = known.pop(subscriber, None) is not None
            else:
                removed = known is not None and known.subscriber == subscriber
            if removed and (not known or isinstance(known, _Only)):
                del self._exact[topic_filter]
        self.count -= removed
        return removed

    def _remove_wild(self, topic_filter: str, subscriber: S) -> bool:
        path: list[tuple[dict[str, _Node[S]], str]] = []
        node = self._root
        for level in topic_filter.split("/"):
            children = node.children
            child = None if children is None else children.get(level)
            if children is None or child is None:
                return False
            path.append((children, level))
            node = child
        if node.subscribers is None or node.subscribers.pop(subscriber, None) is None:
            return False
        self.version += 1
        for children, level in reversed(path):
            node = children[level]
            if node.subscribers or node.children:
                break
            del children[level]
        return True

    @property
    def empty(self) -> bool:
        """Whether not even a branch is left."""
        return not self._exact and not self._root.children

    def match(self, topic: str) -> Mapping[S, int]:
        """Who gets a message on `topic`, each once, at the highest QoS of their matching filters [MQTT-3.3.5-1]."""
        return merged(self.exact(topic), self.wild(topic))

    def names(self, topic: str) -> bool:
        """Whether somebody subscribed to the topic itself."""
        return topic in self._exact

    def exact(self, topic: str) -> Mapping[S, int]:
        """As `match`, by the filter alone that is the topic itself. To be looked at, not kept."""
        known = self._exact.get(topic)
        if known is None:
            return NOBODY
        return known if isinstance(known, dict) else {known.subscriber: known.qos}

    def wild(self, topic: str) -> Mapping[S, int]:
        """As `match`, by filters with wildcards alone."""
        if not self._root.children:
            return NOBODY
        found: dict[S, int] = {}
        nodes = [self._root]
        # A topic that begins with $ is not matched by a filter that begins with a wildcard [MQTT-4.7.2-1].
        wild = not topic.startswith("$")
        for level in topic.split("/"):
            below: list[_Node[S]] = []
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
            wild = True
            nodes = below
            if not nodes:
                return found or NOBODY
        for node in nodes:
            if node.subscribers:
                _merge(found, node.subscribers)
            # "sport/#" also matches "sport" (4.7.1.2).
            child = None if node.children is None else node.children.get("#")
            if child is not None and child.subscribers:
                _merge(found, child.subscribers)
        return found or NOBODY


def merged(exact: Mapping[S, int], wild: Mapping[S, int]) -> Mapping[S, int]:
    """All of both, each at the highest QoS. May return one of its arguments."""
    if not exact:
        return wild
    if not wild:
        return exact
    found = dict(wild)
    _merge(found, exact)
    return found


def _merge(found: dict[S, int], subscribers: Mapping[S, int]) -> None:
    for subscriber, qos in subscribers.items():
        if found.get(subscriber, -1) < qos:
            found[subscriber] = qos


def has_wildcard(topic_filter: str) -> bool:
    """Whether a valid filter can match more than the topic of its own name."""
    return "+" in topic_filter or "#" in topic_filter


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a filter matches a topic (4.7)."""
    return contains(topic_filter, topic)


def contains(outer: str, inner: str) -> bool:
    """Whether every topic that the filter `inner` matches is matched by the filter `outer`."""
    if inner.startswith("$") and outer.startswith(("+", "#")):
        return False  # [MQTT-4.7.2-1]
    wide, narrow = outer.split("/"), inner.split("/")
    for index, level in enumerate(wide):
        if level == "#":
            return True
        if index >= len(narrow) or narrow[index] == "#" or level not in ("+", narrow[index]):
            return False
    return len(wide) == len(narrow)
