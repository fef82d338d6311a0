"""The connections that speak for one device, and which of them listen. Pure."""

from __future__ import annotations

from typing import final

from bridge.messages import Link


@final
class Links:
    """Nearly every device has one connection or none: a dictionary is made for several alone, and ten thousand devices
    need none."""

    __slots__ = ("_link", "_listens", "_several")

    def __init__(self) -> None:
        self._link: Link | None = None
        """The only one."""
        self._listens = False
        self._several: dict[Link, bool] | None = None
        """All of them, once there were two at the same time."""

    def __bool__(self) -> bool:
        return self._link is not None or bool(self._several)

    @property
    def listening(self) -> bool:
        """Whether any of them listens."""
        return self._listens if self._several is None else True in self._several.values()

    def put(self, link: Link, *, listens: bool) -> bool | None:
        """A connection speaks for the device. Whether it had been listening, None if it is a new one; who has listened
        goes on to."""
        if self._several is None:
            if self._link is None or self._link is link:
                before = None if self._link is None else self._listens
                self._link, self._listens = link, listens or before is True
                return before
            self._several = {self._link: self._listens}
            self._link = None
        before = self._several.get(link)
        self._several[link] = listens or before is True
        return before

    def take(self, link: Link) -> bool:
        """A connection is gone; False if it did not speak for the device."""
        if self._several is not None:
            gone = self._several.pop(link, None) is not None
            if not self._several:
                self._several, self._listens = None, False
            return gone
        if self._link is not link:
            return False
        self._link, self._listens = None, False
        return True
