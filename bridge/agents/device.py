"""What the bridge keeps and does for one device: its state, its presence, its readings. Owned by one coroutine."""

from __future__ import annotations

from typing import Final, final

import msgspec

from bridge.agents.agent import Agent
from bridge.agents.book import CommandBook, Host
from bridge.agents.services import Services
from bridge.commands import decode_request, decode_response, new_command
from bridge.errors import RefusedError
from bridge.messages import Kind, Link, Message
from bridge.presence import Presence, Status, Transition
from bridge.readings import Reading, decode
from bridge.receipts import Outcome
from bridge.storage.devices import DeviceSnapshot

MAX_STREAMS: Final = 64
"""Streams of one device whose last values are kept in memory; readings of further ones are stored all the same."""


@final
class Latest:
    """A stream's last reading: measured at `ts` (Unix seconds), the JSON as it was sent."""

    __slots__ = ("payload", "ts")

    def __init__(self, ts: float, payload: str) -> None:
        self.ts = ts
        self.payload = payload


class _State(msgspec.Struct):
    # What of the device is stored as JSON: for each stream the time and the values of its last reading.
    streams: dict[str, tuple[float, msgspec.Raw]] = {}


class _Pong(msgspec.Struct):
    id: str = ""


_states: Final = msgspec.json.Decoder(_State)
_pongs: Final = msgspec.json.Decoder(_Pong)


@final
class Device:
    """One device. No method waits: what needs the database is handed to the writer, and its answer comes back through
    the mailbox, so that a database that is away stops neither pings nor presence."""

    __slots__ = (
        "_agent", "_changed", "_counted_as", "_host", "_links", "_save_at", "_services", "commands", "first_seen", "id",
        "messages", "presence", "profile", "round_trip", "streams",
    )  # fmt: skip

    def __init__(self, device_id: str, snapshot: DeviceSnapshot | None, services: Services, host: Host) -> None:
        """`snapshot` is the stored state, or None for a device that nobody has heard of."""
        self.id = device_id
        self._services = services
        self._host = host
        self._links: dict[Link, bool] = {}
        self._save_at = 0.0
        self.commands: CommandBook | None = None
        self.round_trip: float | None = None
        self.streams: dict[str, Latest] = {}
        if snapshot is None:
            now = services.clock()
            self.profile = "default"
            self.first_seen = now
            self.messages = 0
            self.presence = Presence(heard_at=now)
            self._changed = True
            services.census.devices[Status.UNKNOWN.value] += 1
        else:
            self.profile = snapshot.profile
            self.first_seen = snapshot.first_seen
            self.messages = snapshot.messages
            self.presence = Presence(Status(snapshot.status), snapshot.epoch, snapshot.last_seen)
            self._changed = False
            if snapshot.state:
                streams = _states.decode(snapshot.state).streams
                self.streams = {name: Latest(ts, bytes(values).decode()) for name, (ts, values) in streams.items()}
        self._counted_as = self.presence.status
        self._agent = self._new_agent()

    # ------------------------------------------------------------------ messages

    def handle(self, message: Message) -> None:
        """Handle one message from the broker. Raises RefusedError when it cannot be accepted as it is."""
        address = message.address
        if address.from_device:
            self._heard(message.received_at)
        match address.kind:
            case Kind.TELEMETRY:
                self._record(message, address.stream)
            case Kind.EVENT:
                self._record(message, "event/" + address.stream)
            case Kind.RESPONSE:
                self._take_response(message)
            case Kind.PONG:
                self._take_pong(message)
            case Kind.COMMAND:
                self._accept_command(message)
            case Kind.DESIRED | Kind.REPORTED:
                raise RefusedError("unsupported", "the device twin is not part of this version")

    def _record(self, message: Message, stream: str) -> None:
        received_at = message.received_at
        decoded = decode(message.payload, received_at)
        writer = self._services.writer
        if isinstance(decoded, Reading):
            if self._agent is not None:
                self._agent.on_reading(stream, decoded)
            ts, message_id, payload = decoded
            writer.add_reading(self.id, stream, ts, received_at, message_id, payload, message.receipt)
            self._keep_latest(stream, ts, payload)
        else:
            if self._agent is not None:
                for reading in decoded:
                    self._agent.on_reading(stream, reading)
            rows = [(self.id, stream, r.ts, received_at, r.message_id, r.payload) for r in decoded]
            writer.add_readings(rows, message.receipt)
            last = max(decoded, key=lambda reading: reading.ts)
            self._keep_latest(stream, last.ts, last.payload)
        self.messages += 1
        self._changed = True
        if received_at >= self._save_at:
            self.save()

    def _keep_latest(self, stream: str, ts: float, payload: str) -> None:
        latest = self.streams.get(stream)
        if latest is None:
            if len(self.streams) < MAX_STREAMS:
                self.streams[stream] = Latest(ts, payload)
        elif ts >= latest.ts:
            latest.ts = ts
            latest.payload = payload

    def _take_pong(self, message: Message) -> None:
        try:
            _pongs.decode(message.payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RefusedError("bad_pong", f"a pong is {{id}}: {error}") from error
        if self.presence.pinged_at:
            self.round_trip = message.received_at - self.presence.pinged_at
        message.receipt.settle(Outcome.COMMITTED)

    def _accept_command(self, message: Message) -> None:
        rules = self._services.rules
        request = decode_request(message.payload)
        command = new_command(
            self.id, request, message.received_at, ttl=rules.command_ttl, max_ttl=rules.command_max_ttl
        )
        self.book.accept(command, cause="mqtt", receipt=message.receipt)

    def _take_response(self, message: Message) -> None:
        self.book.answer(decode_response(message.payload), message)

    # ------------------------------------------------------------------ presence

    def attached(self, link: Link, *, listening: bool) -> None:
        """A connection speaks for the device; `listening`: it has subscribed to what is meant for the device."""
        newly_listening = listening and not self._links.get(link, False)
        self._links[link] = listening or self._links.get(link, False)
        now = self._services.clock()
        self._transition(self.presence.heard(now, "connect"))
        self._host.call_before(self.presence.next_check(self._services.rules.ping_interval))
        if newly_listening and self.commands is not None:
            self.commands.send_waiting(now)

    def detached(self, link: Link, cause: str) -> None:
        """A connection that spoke for the device is gone."""
        if self._links.pop(link, None) is None or self._links:
            return
        self._transition(self.presence.gone(self._services.clock(), cause))

    @property
    def listening(self) -> bool:
        """Whether the device can be sent something now."""
        return any(self._links.values())

    def _heard(self, at: float) -> None:
        presence = self.presence
        if presence.status is Status.ONLINE:
            presence.heard_at = at
            presence.misses = 0
        elif self._links:
            self._transition(presence.heard(at))
        else:
            # Its connection is closed already: the message is late, the device is still gone.
            presence.heard_at = at

    def _transition(self, transition: Transition | None) -> None:
        if transition is None:
            return
        status, cause, epoch, at = transition
        services = self._services
        census = services.census
        census.transitions += 1
        census.devices[status.value] += 1
        census.devices[self._counted_as.value] -= 1
        self._counted_as = status
        services.writer.add_presence(self.id, epoch, status.value, cause, at)
        body = {"status": status.value, "cause": cause, "epoch": epoch, "at": at}
        services.publish_json(self.id, "presence", body, qos=1, retain=True)
        self.save()  # in the same batch as the transition, so that no epoch is ever given twice

    def _ping(self, now: float) -> None:
        rules = self._services.rules
        self._transition(self.presence.pinged(now, rules.ping_misses))
        self._services.publish_json(self.id, "ping", {"id": format(int(now * 1000), "x")})

    # ------------------------------------------------------------------ commands

    @property
    def book(self) -> CommandBook:
        """The device's unfinished commands."""
        if self.commands is None:
            self.commands = CommandBook(self, self._services, self._host)
        return self.commands

    # ------------------------------------------------------------------ time and state

    def tick(self) -> None:
        """Do what is due by now."""
        now = self._services.clock()
        rules = self._services.rules
        if self._links and self.presence.ping_due(now, rules.ping_interval):
            self._ping(now)
        if self.commands is not None:
            self.commands.expire(now)
        if self._changed and now >= self._save_at:
            self.save()
        self._host.call_before(self.next_check())

    def next_check(self) -> float:
        """When `tick` is wanted next, in Unix seconds; infinity if nothing can be due."""
        due = float("inf")
        if self._links:
            due = self.presence.next_check(self._services.rules.ping_interval)
        if self.commands is not None:
            due = min(due, self.commands.next_deadline)
        if self._changed:
            due = min(due, self._save_at)
        return due

    @property
    def forgettable(self) -> bool:
        """Whether the stored state is all there is to know, so that the device may leave memory."""
        return not (self._links or self._changed or (self.commands is not None and self.commands.open))

    def snapshot(self) -> DeviceSnapshot:
        """The state as it is stored."""
        state = _State({name: (latest.ts, msgspec.Raw(latest.payload)) for name, latest in self.streams.items()})
        return DeviceSnapshot(
            device_id=self.id,
            profile=self.profile,
            first_seen=self.first_seen,
            last_seen=self.presence.heard_at,
            messages=self.messages,
            status=self.presence.status.value,
            epoch=self.presence.epoch,
            state=msgspec.json.encode(state).decode(),
        )

    def save(self) -> None:
        """Hand the state to the writer: the last one in a batch is stored."""
        self._changed = False
        self._save_at = self._services.clock() + self._services.rules.snapshot_interval
        self._services.writer.save_device(self.snapshot())

    def restart_agent(self) -> None:
        """Build the device logic anew, after it has raised."""
        self._agent = self._new_agent()

    def _new_agent(self) -> Agent | None:
        agent_class = self._services.rules.agent_class
        return None if agent_class is None else agent_class(self.id)
