"""The agent that a programmer subclasses: what a device means, as opposed to what is done for every device."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Protocol, TypeVar

import msgspec
import structlog

from bridge.agents.effects import Publication, Seat
from bridge.twin import Part

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)
T = TypeVar("T")


class HasState(Protocol[S_co]):
    """An agent class with a nested class `State`: what makes `self.state` known to type checkers as that class."""

    @property
    def State(self) -> type[S_co]:
        """The class of the state."""


class Agent:
    """Device logic. One instance per device, whose handlers (see `on` and `every`) are called one at a time.

    What a handler does, by `command`, `publish`, `desire`, `after` or by changing `self.state`, is kept back while it
    runs and committed together with the message that it was called for, in one transaction. If it raises, nothing of it
    happens: the message becomes a dead letter with the error's text, and the agent is built anew with its last
    committed state. `RefusedError` refuses the message only, and is not counted as a failure.

    Handlers run on the event loop that serves all devices: they may wait, and must not block. What takes long to
    compute, or a library that blocks, goes through `offload`.

    A subclass may have a nested class `State`, a msgspec.Struct with a default for every field: it is stored with
    every message that changes it, so it is there again after a restart. Other attributes last until the agent is
    built anew.
    """

    state_name: ClassVar[str] = ""
    """What the state is stored under; the class's name if empty. Set it when the class gets another name."""
    state_version: ClassVar[int] = 1
    """The version of State: raise it when State changes so that stored ones no longer fit, and write `migrate`."""

    @classmethod
    def stored_as(cls) -> str:
        """What the state is stored under."""
        return cls.state_name or cls.__name__

    def __init__(self, seat: Seat, state: Any) -> None:
        """Called by the bridge and by `bridge.testing`. What an agent needs to begin with belongs into `start`."""
        self._seat = seat
        self._state = state

    @property
    def state(self: HasState[S]) -> S:
        """What the agent keeps of its device."""
        kept: S = self._state  # type: ignore[attr-defined]  # it is an Agent; the protocol only tells S
        return kept

    @state.setter
    def state(self: HasState[S], state: S) -> None:
        self._state = state  # type: ignore[attr-defined]  # likewise

    @property
    def device_id(self) -> str:
        """The device."""
        return self._seat.device_id

    @property
    def now(self) -> float:
        """The bridge's time, in Unix seconds."""
        return self._seat.clock()

    @property
    def log(self) -> structlog.stdlib.BoundLogger:
        """A logger that names the device: `self.log.info("door is open", since=…)`."""
        return self._seat.log

    # ------------------------------------------------------------------ what a subclass may override

    async def start(self) -> None:
        """Called when the agent has been built, before the first message: after a restart of the bridge, after a
        failure, and when its device had been out of memory."""

    @classmethod
    def migrate(cls, version: int, raw: dict[str, Any]) -> dict[str, Any]:
        """The JSON of a State of an older `version` as the present class can read it."""
        raise NotImplementedError(f"{cls.__name__}.migrate is not written")

    # ------------------------------------------------------------------ what a handler can do

    async def command(self, name: str, args: Any = None, *, ttl: float | None = None) -> str:
        """Send the device a command, as an operator would; `ttl` in seconds. Returns its id. What became of it comes
        to the handler of `on.response(name)`.

        Raises RefusedError when the command is not acceptable or the device has too many unfinished ones.
        """
        effects = self._seat.open_effects
        effects.check_room()
        # As JSON has it: what is changed in `args` from here on changes nothing.
        command = self._seat.new_command(name, msgspec.json.decode(msgspec.json.encode(args)), ttl)
        effects.commands.append(command)
        return command.command_id

    async def publish(self, topic: str, payload: Any, *, qos: int = 1, retain: bool = False) -> None:
        """Publish on any topic; `self.topic("alarm")` is one of the device's own. `bytes` and `str` are sent as they
        are, anything else as JSON. It leaves after the commit; a crash at that very moment loses it."""
        if not topic or len(topic) > 65_535 or any(c in topic for c in "+#\0") or topic.startswith("$"):
            raise ValueError(f"{topic[:200]!r} is no topic to publish on")
        if qos not in (0, 1, 2):
            raise ValueError(f"qos is 0, 1 or 2, not {qos!r}")
        effects = self._seat.open_effects
        effects.check_room()
        match payload:
            case bytes():
                data = payload
            case str():
                data = payload.encode()
            case _:
                data = msgspec.json.encode(payload)
        effects.publications.append(Publication(topic, data, qos, retain))

    async def desire(self, patch: dict[str, Any]) -> None:
        """Ask the device to be otherwise: a merge patch (RFC 7396) of its twin's desired part."""
        self._patch(Part.DESIRED, patch)

    async def report(self, patch: dict[str, Any]) -> None:
        """Say how the device is, in its place: a merge patch of its twin's reported part."""
        self._patch(Part.REPORTED, patch)

    def _patch(self, part: Part, patch: dict[str, Any]) -> None:
        effects = self._seat.open_effects
        effects.check_room()
        effects.patches.append((part, msgspec.json.decode(msgspec.json.encode(patch), type=dict[str, Any])))

    def topic(self, name: str) -> str:
        """The device's own topic `name`."""
        return self._seat.topic_of(self._seat.device_id, name)

    def after(self, seconds: float, method: Callable[[], Awaitable[None]]) -> None:
        """Call a method of this agent once, in so many seconds. It is kept with the state and survives a restart; a
        method that waits to be called already gets the new time."""
        name = getattr(method, "__name__", "")
        if getattr(method, "__self__", None) is not self or name not in self._seat.timers:
            raise ValueError(f"{method!r} is not an `async def` method of this agent without parameters")
        if not seconds >= 0:
            raise ValueError(f"in {seconds!r} seconds is not possible")
        self._seat.open_effects.timers[name] = self.now + seconds

    def cancel(self, method: Callable[[], Awaitable[None]]) -> None:
        """Do not call a method that `after` has asked for."""
        self._seat.open_effects.timers.pop(getattr(method, "__name__", ""), None)

    async def offload(self, function: Callable[..., T], *args: Any, threads: bool = False) -> T:
        """What `function(*args)` returns, run in another process, or with `threads` in a thread (for a library that
        blocks). Other devices are served meanwhile; this one's next message waits.

        For a process the function must be defined at the top of a module; what goes in and comes out is pickled.
        """
        return await self._seat.offload(function, *args, threads=threads)
