"""Which method of an agent class is called for what: the decorators `on` and `every`, and what they add up to."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, final

import msgspec

from bridge.commands import Command
from bridge.errors import RefusedError
from bridge.presence import Transition
from bridge.topics import DEFAULT_STREAM

Method = Callable[..., Awaitable[Any]]

Marked = TypeVar("Marked", bound=Method)
Payload = TypeVar("Payload", bound=Callable[[Any, Any], Awaitable[None]])
OfPresence = TypeVar("OfPresence", bound=Callable[[Any, Transition], Awaitable[None]])
OfResponse = TypeVar("OfResponse", bound=Callable[[Any, Command], Awaitable[None]])
OfCommand = TypeVar("OfCommand", bound=Callable[..., Awaitable[Any]])
OfTime = TypeVar("OfTime", bound=Callable[[Any], Awaitable[None]])

_MARKS: Final = "__bridge_handles__"
SHORTEST_INTERVAL: Final = 1.0
"""Seconds: what is wanted more often belongs into the device."""


@final
class On:
    """Decorators for the methods of an agent class: which method is called for what."""

    def telemetry(self, stream: str = DEFAULT_STREAM) -> Callable[[Payload], Payload]:
        """Readings of a stream. The method's parameter is decoded into the type that it is annotated with: whatever
        msgspec knows, as a Struct, a dataclass or a TypedDict. A message that does not fit becomes a dead letter with
        the path of the wrong field; in a batch the method is called for each reading."""
        return _marker("telemetry", stream)

    def event(self, kind: str) -> Callable[[Payload], Payload]:
        """Events of a kind, decoded as telemetry is."""
        return _marker("telemetry", f"event/{kind}")

    def desired(self, method: Payload) -> Payload:
        """The twin's desired part has changed. The parameter gets the whole desired part, decoded as telemetry is."""
        return _mark(method, "desired", "")

    def presence(self, method: OfPresence) -> OfPresence:
        """The device's presence has changed."""
        return _mark(method, "presence", "")

    def response(self, name: str) -> Callable[[OfResponse], OfResponse]:
        """A command of this name has ended: the device has answered it, or it has expired or was cancelled."""
        return _marker("response", name)

    def command(self, name: str) -> Callable[[OfCommand], OfCommand]:
        """An operator's command of this name, which the agent carries out instead of the device. Its arguments must
        fit the method's parameters; what the method returns is the command's result, and what it raises its error."""
        return _marker("command", name)


on: Final = On()


def every(*, hours: float = 0.0, minutes: float = 0.0, seconds: float = 0.0) -> Callable[[OfTime], OfTime]:
    """Call the method again and again, for each device. The time of the next call is kept with the agent's state, so
    an interval may be longer than the bridge runs; calls that were missed meanwhile are made up for by one."""
    interval = hours * 3600 + minutes * 60 + seconds
    if interval < SHORTEST_INTERVAL:
        raise ValueError(f"every {interval:g} s is too often: {SHORTEST_INTERVAL:g} s is the shortest interval")
    return _marker("every", interval)


def _marker(kind: str, of: str | float) -> Callable[[Any], Any]:
    return lambda method: _mark(method, kind, of)


def _mark(method: Marked, kind: str, of: str | float) -> Marked:
    can_be_awaited: bool = inspect.iscoroutinefunction(method)
    if not can_be_awaited:
        raise TypeError(f"{getattr(method, '__qualname__', method)} must be an `async def` method")
    method.__dict__.setdefault(_MARKS, []).append((kind, of))
    return method


# ---------------------------------------------------------------------- what a class adds up to


@final
@dataclass(frozen=True, slots=True)
class Handler:
    """A method that is called for something."""

    attribute: str
    """The method's name in its class."""
    title: str
    """As it is called in errors: `Freezer.reading`."""
    decode: Callable[[str], Any]
    """Its argument from JSON; raises RefusedError `wrong_type`."""


@final
@dataclass(frozen=True, slots=True)
class CommandHandler:
    """A method that carries out a command."""

    attribute: str
    title: str
    arguments: type[msgspec.Struct]
    """Its parameters."""

    def bind(self, args: Any) -> dict[str, Any]:
        """A command's arguments as the method takes them. Raises RefusedError `wrong_type` that names the wrong one."""
        try:
            bound = msgspec.convert({} if args is None else args, self.arguments)
        except msgspec.ValidationError as error:
            raise RefusedError("wrong_type", str(error)) from error
        return {name: getattr(bound, name) for name in bound.__struct_fields__}


@final
class Handlers:
    """What an agent class handles, found out once per class."""

    __slots__ = ("commands", "desired", "every", "presence", "readings", "responses", "state", "timers", "title")

    def __init__(self, agent: type[Any]) -> None:
        """Raises TypeError that says what is wrong with the class."""
        self.title = agent.__name__
        self.state: type[msgspec.Struct] | None = getattr(agent, "State", None)
        self.readings: dict[str, Handler] = {}
        """By stream; an event's stream is `event/{kind}`."""
        self.responses: dict[str, str] = {}
        """By the command's name: the method."""
        self.commands: dict[str, CommandHandler] = {}
        self.presence: str | None = None
        self.desired: Handler | None = None
        self.every: dict[str, float] = {}
        """By method: seconds."""
        self.timers: frozenset[str] = frozenset()
        """The methods that a timer may call: those without parameters."""
        if self.state is not None:
            self._check_state(self.state)
        timers = []
        for attribute, (owner, method) in _methods(agent).items():
            for kind, of in getattr(owner.__dict__[attribute], _MARKS, ()):
                self._add(agent, attribute, method, kind, of)
            if inspect.iscoroutinefunction(method) and not attribute.startswith("__") and _bare(method):
                timers.append(attribute)
        self.timers = frozenset(timers)

    def _check_state(self, state: type[Any]) -> None:
        try:
            state()
            msgspec.json.Decoder(state)
        except TypeError as error:
            raise TypeError(
                f"{self.title}.State must be a msgspec.Struct with a default for each field: {error}"
            ) from None

    def _add(self, agent: type[Any], attribute: str, method: Method, kind: str, of: Any) -> None:
        title = f"{self.title}.{attribute}"
        match kind:
            case "telemetry":
                self._once(self.readings, of, _payload_handler(agent, attribute, title, method), title)
            case "response":
                self._once(self.responses, of, attribute, title)
            case "command":
                self._once(self.commands, of, _command_handler(agent, attribute, title, method), title)
            case "presence":
                if self.presence is not None:
                    raise TypeError(f"{title}: {self.title}.{self.presence} is called for presence already")
                self.presence = attribute
            case "desired":
                if self.desired is not None:
                    raise TypeError(f"{title}: {self.desired.title} is called for desired already")
                self.desired = _payload_handler(agent, attribute, title, method)
            case "every":
                if not _bare(method):
                    raise TypeError(f"{title} is called by a timer: it must have no parameters")
                self.every[attribute] = of

    def _once(self, table: dict[str, Any], of: str, handler: Any, title: str) -> None:
        if of in table:
            raise TypeError(f"{title}: another method of {self.title} is called for {of!r} already")
        table[of] = handler


def _methods(agent: type[Any]) -> dict[str, tuple[type[Any], Method]]:
    """For each coroutine method the class whose decorators count, and the method that is called: a subclass may
    override a handler without saying again what it is for."""
    found: dict[str, tuple[type[Any], Method]] = {}
    for owner in agent.__mro__:
        for attribute, value in vars(owner).items():
            if not inspect.iscoroutinefunction(value):
                continue
            known = found.get(attribute)
            if known is None:
                found[attribute] = (owner, value)
            elif not hasattr(vars(known[0])[attribute], _MARKS):
                found[attribute] = (owner, known[1])
    return found


def _parameters(method: Method) -> list[inspect.Parameter]:
    return list(inspect.signature(method).parameters.values())[1:]


def _bare(method: Method) -> bool:
    return all(parameter.default is not parameter.empty for parameter in _parameters(method))


def _hints(agent: type[Any], title: str, method: Method) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(method, localns=dict(vars(agent)), include_extras=True)
    except NameError as error:
        raise TypeError(f"{title}: an annotation cannot be resolved at run time: {error}") from error


def _payload_handler(agent: type[Any], attribute: str, title: str, method: Method) -> Handler:
    parameters = _parameters(method)
    if len(parameters) != 1:
        raise TypeError(f"{title} must have one parameter: what has come in")
    kind = _hints(agent, title, method).get(parameters[0].name, Any)
    try:
        decoder = msgspec.json.Decoder(kind)
    except TypeError as error:
        raise TypeError(f"{title}: its parameter's type cannot be decoded: {error}") from error

    def decode(payload: str) -> Any:
        try:
            return decoder.decode(payload)
        except msgspec.ValidationError as error:
            raise RefusedError("wrong_type", str(error)) from error

    return Handler(attribute, title, decode)


def _command_handler(agent: type[Any], attribute: str, title: str, method: Method) -> CommandHandler:
    hints = _hints(agent, title, method)
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for parameter in _parameters(method):
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{title}: a command's arguments come by name; *args, **kwargs and `/` are not possible")
        kind = hints.get(parameter.name, Any)
        if parameter.default is parameter.empty:
            fields.append((parameter.name, kind))
        else:
            fields.append((parameter.name, kind, parameter.default))
    try:
        arguments = msgspec.defstruct(title, fields, kw_only=True, forbid_unknown_fields=True)
        msgspec.json.Decoder(arguments)
    except TypeError as error:
        raise TypeError(f"{title}: its parameters cannot be decoded: {error}") from error
    return CommandHandler(attribute, title, arguments)
