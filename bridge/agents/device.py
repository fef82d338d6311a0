"""What the bridge keeps and does for one device: its state, its presence, its readings. Owned by one coroutine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

import msgspec

from bridge.agents.book import CommandBook
from bridge.agents.host import Host
from bridge.agents.liveness import Liveness
from bridge.agents.logic import Logic
from bridge.agents.services import Services
from bridge.agents.streams import Streams
from bridge.agents.twin import DeviceTwin
from bridge.agents.world import BridgeWorld
from bridge.commands import Command, CommandRequest, decode_request, decode_response, new_command
from bridge.errors import RefusedError
from bridge.mapping import Rule, result_of
from bridge.messages import Kind, Link, Message
from bridge.presence import Presence, Status, Transition, decode_sleep
from bridge.profiles import DEFAULT
from bridge.readings import Reading, decode, numbered
from bridge.receipts import Outcome
from bridge.registry import Admission
from bridge.storage.devices import DeviceSnapshot
from bridge.storage.registry import set_profile
from bridge.twin import Part

ACCEPTED: Final = Admission.ACCEPTED


@final
class Device:
    """One device. No method waits: what needs the database is handed to the writer, and its answer comes back through
    the mailbox, so that a database that is away stops neither pings nor presence."""

    __slots__ = (
        "_changed", "_host", "_save_at", "_services", "_strangers", "_twin", "admission", "commands", "first_seen",
        "id", "liveness", "logic", "messages", "profile", "streams",
    )  # fmt: skip

    def __init__(self, device_id: str, snapshot: DeviceSnapshot | None, services: Services, host: Host) -> None:
        """`snapshot` is the stored state, or None for a device that nobody has heard of."""
        self.id = device_id
        self._services = services
        self._host = host
        self._save_at = 0.0
        self.commands: CommandBook | None = None
        self._strangers: dict[Link, bool] | None = None
        self._twin: DeviceTwin | None = None
        if snapshot is None:
            self.streams = Streams()
            now = services.clock()
            self.profile = services.profiles.of_unknown(device_id)
            self.admission = services.unknown
            self.first_seen = now
            self.messages = 0
            presence = Presence(epoch=services.epoch_floor, heard_at=now)
            self._changed = self.admission is not Admission.UNKNOWN
            services.census.devices[Status.UNKNOWN.value] += self._changed
        else:
            self.profile = services.profiles.get(snapshot.profile)
            self.admission = Admission(snapshot.admission)
            self.first_seen = snapshot.first_seen
            self.messages = snapshot.messages
            presence = Presence(Status(snapshot.status), max(snapshot.epoch, services.epoch_floor), snapshot.last_seen)
            self._changed = False
            if snapshot.twin_version:
                self._twin = DeviceTwin(self, snapshot.twin_version, services, host)
            self.streams = Streams.stored(snapshot.state)
        self.liveness = Liveness(self, presence, services, host)
        self.logic = self._new_logic()
        """What a programmer's class makes of the device; None if its profile has none."""
        if self.logic is not None and self.logic.keeps_time:
            self.logic.build()

    # ------------------------------------------------------------------ messages

    def record(self, messages: Sequence[Message]) -> int:
        """Store the readings at the beginning of `messages`, where there is nothing else to be done with them: how many
        messages they are. The same as `handle` for each, which is for what comes after them; in less time, as what is
        alike is done once."""
        if self.admission is not ACCEPTED or not self.profile.plain or self.logic is not None:
            return 0
        store = self._store
        taken = 0
        received_at = 0.0
        try:
            for message in messages:
                address = message.address
                if not address.plain:
                    break
                reading = decode(message.payload, message.received_at)
                if not isinstance(reading, Reading):
                    break
                received_at = message.received_at
                store(message, address.stream, reading)
                taken += 1
        except RefusedError:
            pass  # `handle` says what is wrong with it
        if taken:
            self.liveness.heard(received_at)
            self._count(received_at, taken)
        return taken

    def handle(self, message: Message) -> None:
        """Handle one message from the broker. Raises RefusedError when it cannot be accepted as it is."""
        address = message.address
        if self.admission is not ACCEPTED:
            self.check_admission()
        if address.rule is not None:
            self._take_foreign(message, address.rule)
            return
        if address.from_device:
            self.liveness.heard(message.received_at)
        match address.kind:
            case Kind.TELEMETRY:
                self._record(message, address.stream)
            case Kind.EVENT:
                if address.stream == "sleep":
                    self._take_sleep(message)
                else:
                    self._record(message, "event/" + address.stream)
            case Kind.RESPONSE:
                self._take_response(message)
            case Kind.PONG:
                self.liveness.take_pong(message)
            case Kind.COMMAND:
                self._accept_command(message)
            case Kind.DESIRED:
                self.twin.take(Part.DESIRED, message)
            case Kind.REPORTED:
                self.twin.take(Part.REPORTED, message)

    def _take_foreign(self, message: Message, rule: Rule) -> None:
        """A message on a topic of the device's own: read it as the rule says."""
        address = message.address
        if self.profile.name == DEFAULT != rule.profile:
            self._adopt(rule.profile)
        if rule.kind is Kind.PRESENCE:
            self.liveness.reported(message.received_at, there=rule.is_there(message.payload))
            message.receipt.settle(Outcome.COMMITTED)
            return
        if address.from_device:
            self.liveness.heard(message.received_at)
        if rule.kind is Kind.RESPONSE:
            result = result_of(message.payload)
            if not self.book.answer_oldest(result, rule.failure(result), message):
                # Nobody has asked: it tells what has happened at the device itself.
                self._record(_with(message, msgspec.json.encode({"result": result})), "event/response")
            return
        stream = rule.stream if rule.kind is Kind.TELEMETRY else f"event/{rule.stream}"
        self._record(_with(message, rule.readings(message.payload)), stream)

    def _adopt(self, profile: str) -> None:
        # A device of no special kind that speaks like one of a profile is of that.
        self.profile = self._services.profiles.get(profile)
        self.logic = self._new_logic()
        self._services.writer.add_change(lambda connection: set_profile(connection, self.id, profile))

    def _record(self, message: Message, stream: str) -> None:
        received_at = message.received_at
        profile = self.profile
        if profile.plain:
            decoded = decode(message.payload, received_at)
        else:
            decoded = profile.decode(message.payload, stream, received_at)
        if message.address.replay:
            decoded = numbered(decoded, message.address.replay)
        if self.logic is not None and self.logic.take(message, stream, decoded):
            return
        if isinstance(decoded, Reading):
            self._store(message, stream, decoded)
            self._count(received_at, 1)
        else:
            rows = [(self.id, stream, r.ts, received_at, r.message_id, r.payload) for r in decoded]
            self._services.writer.add_readings(rows, message.receipt)
            self.recorded(stream, decoded, received_at)

    def _store(self, message: Message, stream: str, reading: Reading) -> None:
        ts, received_at, payload = reading.ts, message.received_at, reading.payload
        services, device_id = self._services, self.id
        services.writer.add_reading(device_id, stream, ts, received_at, reading.message_id, payload, message.receipt)
        self.streams.keep(stream, ts, payload)
        if services.feed.listening:
            services.feed.readings(device_id, stream, received_at, (reading,))

    def recorded(self, stream: str, readings: Sequence[Reading], received_at: float) -> None:
        """The readings of a message are in the writer's hands, or committed by device logic: keep the last one."""
        last = max(readings, key=lambda reading: reading.ts)
        self.streams.keep(stream, last.ts, last.payload)
        feed = self._services.feed
        if feed.listening:
            feed.readings(self.id, stream, received_at, readings)
        self._count(received_at, 1)

    def _count(self, received_at: float, messages: int) -> None:
        self.messages += messages
        self._changed = True
        if not 0.0 < self._save_at - received_at <= self._services.rules.snapshot_interval:
            self.save()  # it is time, or the clock was set back, and else it would not be for long

    def _take_sleep(self, message: Message) -> None:
        seconds = decode_sleep(message.payload)
        self._record(message, "event/sleep")
        if not message.address.replay:
            self.liveness.sleeps(message.received_at, seconds)

    def _accept_command(self, message: Message) -> None:
        request = decode_request(message.payload)
        if message.address.replay and request.id is None:
            request = msgspec.structs.replace(request, id=message.address.replay)
        self.book.accept(self.new_command(request, message.received_at), cause="mqtt", message=message)

    def _take_response(self, message: Message) -> None:
        self.book.answer(decode_response(message.payload), message)

    # ------------------------------------------------------------------ presence

    def attached(self, link: Link, *, listening: bool) -> None:
        """A connection speaks for the device; `listening`: it has subscribed to what is meant for the device."""
        if self.admission is Admission.UNKNOWN:
            self._strangers = self._strangers or {}
            self._strangers[link] = listening or self._strangers.get(link, False)
            return
        anew = self.liveness.attached(link, listening=listening)
        if anew and self.commands is not None:
            self.commands.send_waiting(self._services.clock())
        if listening and self._twin is not None:
            self._twin.catch_up(anew=anew)

    def detached(self, link: Link, cause: str) -> None:
        """A connection that spoke for the device is gone."""
        if self._strangers is not None:
            self._strangers.pop(link, None)
        self.liveness.detached(link, cause)

    def presence_changed(self, transition: Transition) -> None:
        """Its status is another one now."""
        if self.logic is not None:
            self.logic.presence_changed(transition)

    # ------------------------------------------------------------------ registry

    def registered(self, profile: str | None, admission: Admission) -> None:
        """The registry has changed: the profile, if one is given, and whether the device may take part."""
        before, self.admission = self.admission, admission
        if profile is not None and profile != self.profile.name:
            before_agent = self.profile.agent
            self.profile = self._services.profiles.get(profile)
            if self.profile.agent != before_agent:
                self._change_logic()
        if before is Admission.UNKNOWN and admission is not before:
            self._changed = True
            strangers, self._strangers = self._strangers or {}, None
            for link, listening in strangers.items():
                self.attached(link, listening=listening)
        self._host.call_before(self._services.clock())

    def _change_logic(self) -> None:
        """Another class from now on. What waits for the one before is finished by it."""
        before, self.logic = self.logic, self._new_logic()
        if self.commands is not None:
            self.commands.executor = self.logic
        if self.logic is not None:
            if before is not None:
                self.logic.follow(before)
            if self.logic.keeps_time:
                self.logic.build()

    def removed(self) -> None:
        """The registry forgets the device: nothing of it is stored any more."""
        if self.logic is not None:
            self.logic.abandon()
            self.logic = None
        if self.commands is not None:
            self.commands.removed()
        self.admission = Admission.UNKNOWN
        self._changed = False

    def check_admission(self) -> None:
        """Raises RefusedError for a device that may not take part."""
        if self.admission is Admission.QUARANTINED:
            raise RefusedError(
                "quarantined", f"{self.id} waits for its approval: `mqtt-bridge devices approve {self.id}`"
            )
        if self.admission is Admission.UNKNOWN:
            raise RefusedError("unknown_device", f"{self.id} is not in the registry (registry.unknown is `refuse`)")

    @property
    def listening(self) -> bool:
        """Whether the device can be sent something now."""
        return self.liveness.listening

    # ------------------------------------------------------------------ commands

    def new_command(self, request: CommandRequest, now: float, rollout_id: str | None = None) -> Command:
        """The command that `request` asks of this device. Raises RefusedError if it is not acceptable."""
        profile = self.profile
        profile.check_arguments(request.name, request.args)
        return new_command(
            self.id,
            request,
            now,
            ttl=profile.command_ttl,
            max_ttl=profile.command_max_ttl,
            attempts=profile.command_attempts,
            retry_after=profile.command_retry_after,
            rollout_id=rollout_id,
        )

    @property
    def book(self) -> CommandBook:
        """The device's unfinished commands."""
        if self.commands is None:
            self.commands = CommandBook(self, self._services, self._host)
            self.commands.executor = self.logic
        return self.commands

    def command_ended(self, command: Command) -> None:
        """One of its commands has its last status."""
        if self.logic is not None:
            self.logic.command_ended(command)

    # ------------------------------------------------------------------ twin

    @property
    def twin(self) -> DeviceTwin:
        """The device's twin."""
        if self._twin is None:
            self._twin = DeviceTwin(self, 0, self._services, self._host)
        return self._twin

    def desired_changed(self, desired: str) -> None:
        """The twin's desired part is now this JSON object. Raises RefusedError if device logic cannot read it."""
        if self.logic is not None:
            self.logic.desired_changed(desired)

    # ------------------------------------------------------------------ time and state

    def tick(self) -> None:
        """Do what is due by now."""
        if self.admission is Admission.UNKNOWN:
            return
        now = self._services.clock()
        self.liveness.tick(now)
        if self.commands is not None:
            self.commands.tick(now)
        if self.logic is not None:
            self.logic.tick(now)
        if self._changed and now >= self._save_at:
            self.save()
        self._host.call_before(self.next_check())

    def next_check(self) -> float:
        """When `tick` is wanted next, in Unix seconds; infinity if nothing can be due."""
        if self.admission is Admission.UNKNOWN:
            return float("inf")
        due = self.liveness.next_check()
        if self.commands is not None:
            due = min(due, self.commands.next_due)
        if self.logic is not None:
            due = min(due, self.logic.next_due)
        if self._changed:
            due = min(due, self._save_at)
        return due

    @property
    def forgettable(self) -> bool:
        """Whether the stored state is all there is to know, so that the device may leave memory."""
        return not (
            self.liveness.needed
            or self._strangers
            or self._changed
            or (self.commands is not None and self.commands.open)
            or (self.logic is not None and not self.logic.forgettable)
        )

    def snapshot(self) -> DeviceSnapshot:
        """The state as it is stored."""
        presence = self.liveness.presence
        return DeviceSnapshot(
            device_id=self.id,
            profile=self.profile.name,
            first_seen=self.first_seen,
            last_seen=presence.heard_at,
            messages=self.messages,
            status=presence.status.value,
            epoch=presence.epoch,
            state=self.streams.as_json(),
            admission=self.admission.value,
            twin_version=0 if self._twin is None else self._twin.version,
        )

    def save(self) -> None:
        """Hand the state to the writer: the last one in a batch is stored."""
        if self.admission is Admission.UNKNOWN:
            return
        self._changed = False
        self._save_at = self._services.clock() + self._services.rules.snapshot_interval
        self._services.writer.save_device(self.snapshot())

    def _new_logic(self) -> Logic | None:
        services = self._services
        logic_class = services.logic_classes.get(self.profile.agent)
        if logic_class is None:
            return None
        agent_class, handlers = logic_class
        return Logic(agent_class, handlers, BridgeWorld(self, services, self._host), services.logic_rules)


def _with(message: Message, payload: bytes) -> Message:
    return Message(message.address, payload, message.received_at, message.receipt)
