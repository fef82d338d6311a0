"""The bridge's topics: what a topic means, and which topic to use. No other module builds or takes apart a topic."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, final

from bridge.errors import RefusedError
from bridge.mapping import Request, Rule, find
from bridge.messages import Address, Kind

DEVICE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
STREAM: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")

DEFAULT_STREAM: Final = "default"

_TO_DEVICE: Final = ("command/request", "command/cancel", "ping", "state/delta", "error")
_TO_ALL: Final = ("presence", "state", "command/status")


def is_device_id(text: str) -> bool:
    """Whether `text` may name a device: 1 to 64 of `A-Z a-z 0-9 . _ : -`."""
    return DEVICE_ID.fullmatch(text) is not None


class Grants(NamedTuple):
    """Filters of what a device may do beside what is its own; `%id%` in them stands for the device's id."""

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()


NO_GRANTS: Final = Grants()


@final
class Topics:
    """The topics below one root, for example `devices`, and those of foreign devices that are mapped onto them."""

    __slots__ = ("_foreign", "_prefix", "_requests", "root")

    def __init__(
        self,
        root: str = "devices",
        foreign: Sequence[Rule] = (),
        requests: Mapping[str, Mapping[str, Request]] | None = None,
    ) -> None:
        """`foreign`: what other topics mean. `requests`: by profile and command, how its devices are sent commands."""
        self.root = root
        self._foreign = tuple(foreign)
        self._requests = [request for some in (requests or {}).values() for request in some.values()]
        self._prefix = root + "/"

    def parse(self, topic: str) -> Address | None:
        """The address that `topic` leads to, or None when it is an ordinary topic that the bridge does not read.

        Raises RefusedError when the topic means the bridge but names no possible device or stream.
        """
        if not topic.startswith(self._prefix):
            return self._parse_foreign(topic) if self._foreign else None
        device_id, _, rest = topic[len(self._prefix) :].partition("/")
        head, _, tail = rest.partition("/")
        match head, tail:
            case "telemetry", "":
                kind, stream = Kind.TELEMETRY, DEFAULT_STREAM
            case "telemetry", _:
                kind, stream = Kind.TELEMETRY, tail
            case "event", _ if tail:
                kind, stream = Kind.EVENT, tail
            case "command", "":
                kind, stream = Kind.COMMAND, ""
            case "command", "response":
                kind, stream = Kind.RESPONSE, ""
            case "pong", "":
                kind, stream = Kind.PONG, ""
            case "state", "desired":
                kind, stream = Kind.DESIRED, ""
            case "state", "reported":
                kind, stream = Kind.REPORTED, ""
            case _:
                return None
        _check_id(device_id, topic)
        if stream and STREAM.fullmatch(stream) is None:
            raise RefusedError(
                "bad_stream",
                f"stream {stream[:80]!r} in topic {topic[:200]!r}: use one level of 1 to 64 of A-Z a-z 0-9 . _ : -",
            )
        return Address(topic, device_id, kind, stream)

    def _parse_foreign(self, topic: str) -> Address | None:
        found = find(self._foreign, topic)
        if found is None:
            return None
        rule, device_id = found
        _check_id(device_id, topic)
        return Address(topic, device_id, rule.kind, rule.stream, rule=rule)

    def below_root(self, topic: str) -> bool:
        """Whether a topic lies below the root, whatever it means there."""
        return topic.startswith(self._prefix)

    def of(self, device_id: str, name: str) -> str:
        """The topic `name` (for example `command/request`) of a device."""
        return f"{self._prefix}{device_id}/{name}"

    def owner_of(self, topic_filter: str) -> str | None:
        """The device for whom a subscription to `topic_filter` is meant: its id, if the filter is exactly one of
        the topics from the bridge to that device; None for wildcards and for everything else."""
        if not topic_filter.startswith(self._prefix):
            return None
        device_id, _, name = topic_filter[len(self._prefix) :].partition("/")
        return device_id if name in _TO_DEVICE and is_device_id(device_id) else None

    def device_may_publish(self, device_id: str) -> list[str]:
        """The filters that hold what a device may publish, under its own id."""
        base = self._prefix + device_id
        return [
            f"{base}/telemetry/#",
            f"{base}/event/+",
            *(f"{base}/{k.value}" for k in (Kind.RESPONSE, Kind.PONG, Kind.REPORTED)),
            *(rule.topic_of(device_id) for rule in self._foreign),
        ]

    def device_may_subscribe(self, device_id: str) -> list[str]:
        """The filters that hold what a device may subscribe to: what is meant for it, or for all, under its own id."""
        return [
            *(self.of(device_id, name) for name in (*_TO_DEVICE, *_TO_ALL)),
            *(request.filter_of(device_id) for request in self._requests),
        ]


def _check_id(device_id: str, topic: str) -> None:
    if not is_device_id(device_id):
        raise RefusedError(
            "bad_device_id",
            f"device id {device_id[:80]!r} in topic {topic[:200]!r}: use 1 to 64 of A-Z a-z 0-9 . _ : -",
        )
