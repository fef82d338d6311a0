"""What a topic means to this broker: a device's agent, its subscribers, or a refusal. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from bridge.broker.session import Session
from bridge.broker.subscriptions import NOBODY
from bridge.errors import RefusedError
from bridge.messages import Address
from bridge.topics import Topics


@final
class Route:
    """What is known of a topic that something was published to: the `head` of a PUBLISH with it (the name with its
    length, 3.3.2.1), and who subscribed to it by a wildcard (`wild`), when the subscriptions were at `version`."""

    __slots__ = ("address", "head", "refusal", "topic", "version", "wild")

    def __init__(self, topic: str, address: Address | None, refusal: RefusedError | None) -> None:
        self.topic = topic
        name = topic.encode()
        self.head = len(name).to_bytes(2, "big") + name
        self.address = address
        self.refusal = refusal
        self.wild: Mapping[Session, int] = NOBODY
        self.version = -1


def route_to(topic: str, topics: Topics, max_levels: int) -> Route:
    """Where a valid topic leads. Raises RefusedError when it has too many levels and is an ordinary one: what is below
    the root and refused becomes a dead letter instead."""
    levels = topic.count("/") + 1
    if levels > max_levels:
        error = RefusedError("too_many_levels", f"the topic has {levels} levels; max_topic_levels is {max_levels}")
        if not topics.below_root(topic):
            raise error
        return Route(topic, None, error)
    try:
        return Route(topic, topics.parse(topic), None)
    except RefusedError as error:
        return Route(topic, None, error)
