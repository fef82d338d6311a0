"""Who may do what: the rights of a client, derived from the rule that is written in the topics. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Final, final

from bridge.broker.subscriptions import contains, matches
from bridge.errors import RefusedError
from bridge.mapping import ID
from bridge.topics import NO_GRANTS, Grants, Topics, is_device_id


class Role(enum.StrEnum):
    """What a user is."""

    DEVICE = "device"
    """May publish what comes from a device and subscribe to what is meant for it, under its own id only, and what its
    profile grants beside."""
    OPERATOR = "operator"
    """May publish what comes from an operator, use every ordinary topic, and read everything."""


@final
class Rights:
    """What one client may publish and subscribe to. Computed when asked for: a client asks once per topic, and ten
    thousand clients keep no lists."""

    __slots__ = ("_grants", "_name", "_role", "_topics", "asks")

    def __init__(
        self, role: Role | None, name: str, topics: Topics, grants: Grants = NO_GRANTS, *, asks: bool = False
    ) -> None:
        """`name` is the user's, for a device its id; without a role everything is allowed."""
        self.asks = asks
        """Whether plugins decide, which takes time: then the answers below are not the last word."""
        self._role = role
        self._name = name
        self._topics = topics
        self._grants = grants

    def may_publish(self, topic: str) -> bool:
        """Whether the client may send a message to `topic`."""
        if self._role is None:
            return True
        if self._role is Role.OPERATOR:
            return self._comes_from_operators(topic)
        own = self._topics.device_may_publish(self._name)
        return is_device_id(self._name) and any(
            matches(allowed, topic) for allowed in (*own, *self._granted(self._grants.publish))
        )

    def may_subscribe(self, topic_filter: str) -> bool:
        """A filter is granted only if it is contained in an allowed one: `devices/+` does not grant `devices/#`."""
        if self._role is not Role.DEVICE:
            return True
        own = self._topics.device_may_subscribe(self._name)
        return is_device_id(self._name) and any(
            contains(allowed, topic_filter) for allowed in (*own, *self._granted(self._grants.subscribe))
        )

    def may_receive(self, topic: str) -> bool:
        """Whether a message on `topic` may be delivered: checked again on delivery of retained messages."""
        return self.may_subscribe(topic)

    def _granted(self, filters: tuple[str, ...]) -> Iterator[str]:
        return (topic_filter.replace(ID, self._name) for topic_filter in filters)

    def _comes_from_operators(self, topic: str) -> bool:
        topics = self._topics
        if not topics.below_root(topic):
            return True
        try:
            address = topics.parse(topic)
        except RefusedError:
            return True  # nobody's: it becomes a dead letter that says what is wrong with it
        if address is not None:
            return not address.kind.from_device
        device_id = topic.removeprefix(topics.root + "/").partition("/")[0]
        return topic not in topics.device_may_subscribe(device_id)


EVERYTHING: Final = Rights(None, "", Topics())
ASKED: Final = Rights(None, "", Topics(), asks=True)


def rights_of(role: Role, name: str, topics: Topics, grants: Grants = NO_GRANTS) -> Rights:
    """The rights of an authenticated user. A device's user name is its device id; `grants` is what it may do beside."""
    return Rights(role, name, topics, grants)
