"""amqtt's plugins at this broker: authentication, topic filtering and events.

A plugin is asked in a task of its own, which harms nobody else: the connection that it is asked about waits, for at
most `plugin_timeout` seconds; a plugin that raises or takes longer has said no. Events are reported and not awaited.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, final

import structlog
from amqtt.contexts import Action
from amqtt.events import BrokerEvents, Events
from amqtt.plugins.manager import PluginManager
from amqtt.session import IncomingApplicationMessage
from amqtt.session import Session as Guest

from bridge.broker import packets
from bridge.broker.config import BrokerConfig, BrokerStats
from bridge.broker.retained import Retained
from bridge.broker.session import Delivery, Session
from bridge.broker.subscriptions import has_wildcard
from bridge.broker.wire import ASKING, Wire

log = structlog.get_logger(__name__)

MAX_EVENTS: Final = 1_000
"""Reports that plugins have not finished with; further ones are dropped, counted as `plugin_event`."""

Wanted = list[tuple[str, int]]


@final
class Plugins:
    """Made once, where plugins are configured."""

    def __init__(self, manager: PluginManager[Any], config: BrokerConfig, stats: BrokerStats) -> None:
        self._manager = manager
        self._config = config
        self._stats = stats
        self._tasks: set[asyncio.Task[None]] = set()
        self._events = 0
        self._gates: dict[Session, deque[Delivery]] = {}
        self.authenticates: Final = bool(manager._auth_plugins)
        """Whether any plugin decides who comes in."""
        self.filters: Final = bool(manager._topic_plugins)
        """Whether any plugin decides on topics: then it decides instead of the default rule."""
        self.hand_over: Callable[[Session, Delivery], bool] = lambda session, delivery: False
        """Where a delivery goes that plugins have allowed."""

    # ------------------------------------------------------------------ questions

    def guest_of(self, connect: packets.Connect, address: str) -> Guest:
        """A client as plugins see it."""
        guest = Guest()
        guest.client_id = connect.client_id
        guest.username = connect.username
        guest.password = None if connect.password is None else connect.password.decode("utf-8", "replace")
        guest.clean_session = connect.clean
        guest.keep_alive = connect.keepalive
        guest.remote_address = address
        will = connect.will
        if will is not None:
            guest.will_flag = True
            guest.will_topic, guest.will_message, guest.will_qos, guest.will_retain = will
        guest.is_anonymous = connect.username is None
        return guest

    async def authenticate(self, guest: Guest) -> bool:
        """Whether the plugins let a client in: amqtt's rule, at least one says yes and none says no."""
        try:
            async with asyncio.timeout(self._config.plugin_timeout):
                answers = await self._manager.map_plugin_auth(session=guest)
        except Exception:  # a plugin's code may raise anything
            log.exception("an authentication plugin has failed: the client is refused", user=guest.username)
            return False
        finally:
            guest.password = None  # nobody needs it any more
        said = [answer for answer in answers.values() if answer is not None]
        return bool(said) and all(said)

    async def allows(self, guest: object, topic: str, action: Action) -> bool:
        """Whether all topic plugins allow something."""
        try:
            async with asyncio.timeout(self._config.plugin_timeout):
                answers = await self._manager.map_plugin_topic(session=guest, topic=topic, action=action)
        except Exception:  # a plugin's code may raise anything
            log.exception("a topic plugin has failed: the answer is no", topic=topic[:200], action=str(action))
            return False
        return all(answers.values())

    async def allows_filter(self, guest: object, topic_filter: str) -> bool:
        """Whether a subscription is allowed. Plugins compare a filter as if it were a topic, so that `devices/+` would
        grant `devices/#`: they are asked about a topic that only the wildcards match, too."""
        if not await self.allows(guest, topic_filter, Action.SUBSCRIBE):
            return False
        if not has_wildcard(topic_filter):
            return True
        unlikely = {"+": "0f3e9b", "#": "0f3e9b/5d71c2"}
        probe = "/".join(unlikely.get(level, level) for level in topic_filter.split("/"))
        return await self.allows(guest, probe, Action.SUBSCRIBE)

    def ask_publish(self, wire: Wire, session: Session, topic: str, then: Callable[[bool], None]) -> None:
        """Have the plugins say whether a client may publish to a topic; it waits meanwhile."""
        guest = session.guest

        async def ask() -> None:
            then(await self.allows(guest, topic, Action.PUBLISH))

        self._ask(wire, ask())

    def ask_subscribe(self, wire: Wire, session: Session, wanted: Wanted, then: Callable[[list[bool]], None]) -> None:
        """Have the plugins say which filters are granted; the client waits meanwhile."""
        guest = session.guest

        async def ask() -> None:
            then([await self.allows_filter(guest, topic_filter) for topic_filter, _ in wanted])

        self._ask(wire, ask())

    def ask_will(self, session: Session, will: packets.Will, then: Callable[[], None]) -> None:
        """Have the plugins say whether a client that is gone might have published its will."""

        async def ask() -> None:
            if await self.allows(session.guest, will.topic, Action.PUBLISH):
                then()

        self._start(ask())

    def _ask(self, wire: Wire, question: Coroutine[Any, Any, None]) -> None:
        wire.hold(ASKING)

        async def ask() -> None:
            try:
                await question
            finally:
                wire.let_go(ASKING)

        self._start(ask())

    def ask_receive(self, session: Session, delivery: Delivery) -> bool:
        """Have the plugins say whether a message may be delivered, one after the other, in order. At most `max_queued`
        wait for a session; further ones are dropped, counted as `slow_plugin`."""
        waiting = self._gates.get(session)
        if waiting is None:
            self._gates[session] = deque((delivery,))
            self._start(self._deliver_allowed(session))
        elif len(waiting) >= self._config.max_queued:
            self._stats.dropped["slow_plugin"] += 1
            return False
        else:
            waiting.append(delivery)
        return True

    async def _deliver_allowed(self, session: Session) -> None:
        waiting = self._gates[session]
        try:
            while waiting:
                delivery = waiting.popleft()
                if await self.allows(session.guest, delivery.topic.decode(), Action.RECEIVE):
                    self.hand_over(session, delivery)
                else:
                    self._stats.dropped["not_authorised"] += 1
        finally:
            del self._gates[session]

    # ------------------------------------------------------------------ events

    def fire(self, event: Events, **values: Any) -> None:
        """Report an event to the plugins that want to know."""
        listeners = self._manager._event_plugin_callbacks.get(event)
        if not listeners:
            return
        if self._events >= MAX_EVENTS:
            self._stats.dropped["plugin_event"] += 1
            return
        self._events += 1
        self._start(self._report(event, values))

    async def _report(self, event: Events, values: dict[str, Any]) -> None:
        try:
            for listener in self._manager._event_plugin_callbacks[event]:
                try:
                    async with asyncio.timeout(self._config.plugin_timeout):
                        await listener(**values)
                except Exception:  # a plugin's code may raise anything
                    log.exception("a plugin has failed to take an event", event_name=str(event))
        finally:
            self._events -= 1

    async def life(self, event: Events) -> None:
        """Report that the broker starts or stops, and wait until the plugins know."""
        self._events += 1
        await self._report(event, {})

    def connected(self, session: Session) -> None:
        """A client is let in."""
        self.fire(BrokerEvents.CLIENT_CONNECTED, client_id=session.client_id, client_session=session.guest)

    def disconnected(self, session: Session) -> None:
        """A client is gone."""
        self.fire(BrokerEvents.CLIENT_DISCONNECTED, client_id=session.client_id, client_session=session.guest)

    def subscribed(self, session: Session, topic_filter: str, qos: int) -> None:
        """A subscription is granted."""
        self.fire(BrokerEvents.CLIENT_SUBSCRIBED, client_id=session.client_id, topic=topic_filter, qos=qos)

    def unsubscribed(self, session: Session, topic_filter: str) -> None:
        """A subscription is ended."""
        self.fire(BrokerEvents.CLIENT_UNSUBSCRIBED, client_id=session.client_id, topic=topic_filter)

    def received(self, client_id: str, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """A message was taken."""
        callbacks = self._manager._event_plugin_callbacks
        for event in (BrokerEvents.MESSAGE_RECEIVED, BrokerEvents.MESSAGE_BROADCAST):
            if event in callbacks:
                message = IncomingApplicationMessage(None, topic, qos, payload, retain)
                self.fire(event, client_id=client_id, message=message)

    def retained(self, message: Retained) -> None:
        """A message was retained, or cleared."""
        if BrokerEvents.RETAINED_MESSAGE in self._manager._event_plugin_callbacks:
            kept = IncomingApplicationMessage(None, message.topic, message.qos, message.payload, True)
            self.fire(BrokerEvents.RETAINED_MESSAGE, client_id=None, retained_message=kept)

    # ------------------------------------------------------------------ tasks

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a question to a plugin has failed", exc_info=task.exception())

    async def close(self) -> None:
        """Ask nothing more, and let the plugins close."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._manager.close()
