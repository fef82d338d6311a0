"""Who may do what: the rights of a client, derived from the rule that is written in the topics. Pure."""

from __future__ import annotations

import enum
from typing import Final, final

from bridge.broker.subscriptions import contains, matches
from bridge.topics import Topics, is_device_id


class Role(enum.StrEnum):
    """What a user is."""

    DEVICE = "device"
    """May publish what comes from a device and subscribe to what is meant for it, under its own id only."""
    OPERATOR = "operator"
    """May publish what comes from an operator, use every ordinary topic, and read everything."""


@final
class Rights:
    """What one client may publish and subscribe to. None stands for everything."""

    __slots__ = ("_publish", "_subscribe")

    def __init__(self, publish: list[str] | None = None, subscribe: list[str] | None = None) -> None:
        self._publish = publish
        self._subscribe = subscribe

    def may_publish(self, topic: str) -> bool:
        """Whether a topic is within the client's filters."""
        return self._publish is None or any(matches(allowed, topic) for allowed in self._publish)

    def may_subscribe(self, topic_filter: str) -> bool:
        """A filter is granted only if it is contained in an allowed one: `devices/+` does not grant `devices/#`."""
        return self._subscribe is None or any(contains(allowed, topic_filter) for allowed in self._subscribe)

    def may_receive(self, topic: str) -> bool:
        """Whether a message on `topic` may be delivered: checked again on delivery of retained messages."""
        return self._subscribe is None or any(matches(allowed, topic) for allowed in self._subscribe)


EVERYTHING: Final = Rights()


def rights_of(role: Role, name: str, topics: Topics) -> Rights:
    """The rights of an authenticated user. A device's user name is its device id."""
    if role is Role.OPERATOR:
        return EVERYTHING
    if not is_device_id(name):
        return Rights([], [])
    return Rights(topics.device_may_publish(name), topics.device_may_subscribe(name))
