"""Plugins written for amqtt, among them amqtt's own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import argon2
import pytest
from amqtt.contexts import Action, BaseContext
from amqtt.plugins.base import BaseAuthPlugin, BasePlugin, BaseTopicPlugin

from bridge.errors import StartError
from tests.integration.broker.raw import ack, connect, publish, running, suback, subscribe
from tests.waiting import eventually

ACL = "amqtt.plugins.topic_checking.TopicAccessControlListPlugin"
ANONYMOUS = "amqtt.plugins.authentication.AnonymousAuthPlugin"
FILE = "amqtt.plugins.authentication.FileAuthPlugin"
HERE = __name__


class Recorder(BasePlugin[BaseContext]):  # type: ignore[misc]  # amqtt is not checked
    """Writes down every event."""

    events: ClassVar[list[tuple[str, Any]]] = []

    async def on_broker_post_start(self) -> None:
        self.events.append(("started", None))

    async def on_broker_client_connected(self, client_id: str, client_session: Any) -> None:
        assert client_session.client_id == client_id
        self.events.append(("connected", client_id))

    async def on_broker_client_disconnected(self, client_id: str, client_session: Any) -> None:
        self.events.append(("disconnected", client_id))

    async def on_broker_client_subscribed(self, client_id: str, topic: str, qos: int) -> None:
        self.events.append(("subscribed", topic))

    async def on_broker_message_received(self, client_id: str, message: Any) -> None:
        self.events.append(("received", (message.topic, bytes(message.data))))


class Moody(BaseTopicPlugin):  # type: ignore[misc]  # amqtt is not checked
    """Raises for `raise`, takes for ever for `slow`, else says yes."""

    async def topic_filtering(self, *, session: Any = None, topic: str | None = None, action: Any = None) -> bool:
        if topic == "raise":
            raise RuntimeError("no mood")
        if topic == "slow":
            await asyncio.Event().wait()
        return True

    @dataclass
    class Config:
        """Nothing."""


class Broken(BaseAuthPlugin):  # type: ignore[misc]  # amqtt is not checked
    """Raises."""

    async def authenticate(self, *, session: Any) -> bool:
        raise RuntimeError("no mood")

    @dataclass
    class Config:
        """Nothing."""


async def test_amqtts_password_file(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text(f"fridge-7:{argon2.PasswordHasher(1, 8, 1).hash('cold')}\n")
    async with running(plugins={FILE: {"password_file": str(path)}}, allow_anonymous=False) as house:
        client = await house.client("c", username="fridge-7", password="cold")
        client.send(publish("devices/fridge-7/telemetry", b"mine", qos=1))
        await client.expect(ack("puback"))
        session = house.broker.clients.sessions["c"]
        assert session.guest.password is None  # type: ignore[attr-defined]  # a guest is amqtt's Session
        for name, password in (("fridge-7", "warm"), ("nobody", "cold")):
            raw = await house.raw()
            raw.send(connect("d", username=name, password=password))
            await raw.closed(b"\x20\x02\x00\x04")
        client.send(publish("devices/other/telemetry"))
        await client.closed()


@pytest.mark.filterwarnings("ignore:The 'acl' option is deprecated")  # its Config knows no other
async def test_amqtts_access_control_list() -> None:
    acl = {"publish_acl": {"anonymous": ["a/#"]}, "acl": {"anonymous": ["a/+", "b/#"]}}
    async with running(plugins={ACL: acl}) as house:
        client = await house.client()
        # The plugin alone would grant a/# for a/+: it takes the filter for a topic.
        client.send(subscribe(("a/+", 0), ("a/#", 0), ("b/#", 1), ("c", 0), ("#", 0)))
        await client.expect(suback(0, 0x80, 1, 0x80, 0x80))
        client.send(publish("a/1", b"x", qos=1) + publish("a/1", b"y", qos=1, packet_id=2))
        got = await client.reader.readexactly(2 * len(publish("a/1", b"x")) + 8)
        assert got.count(publish("a/1", b"x")) == got.count(publish("a/1", b"y")) == 1
        client.send(publish("c/1"))
        await client.closed()


async def test_a_plugin_that_raises_or_hangs_harms_only_its_own_call() -> None:
    async with running(plugins={f"{HERE}.Moody": {}}, plugin_timeout=0.3) as house:
        slow, fine = await house.client("slow"), await house.client("fine")
        slow.send(subscribe(("slow", 0)) + subscribe(("raise", 0), packet_id=2) + publish("good", qos=1))
        fine.send(publish("good", qos=1) + subscribe(("good", 0)))
        await fine.expect(ack("puback") + suback(0))
        await slow.expect(suback(0x80) + suback(0x80, packet_id=2) + ack("puback"))
        await fine.expect(publish("good"))
        slow.send(publish("raise"))
        await slow.closed()
        assert await house.broker.plugins.allows(None, "good", Action.PUBLISH)  # type: ignore[union-attr]  # there are plugins


async def test_a_broken_authentication_plugin_lets_nobody_in() -> None:
    async with running(plugins={f"{HERE}.Broken": {}}) as house:
        raw = await house.raw()
        raw.send(connect("c", username="u", password="p"))
        await raw.closed(b"\x20\x02\x00\x04")


async def test_plugins_do_not_open_the_door_to_those_they_were_not_asked_about() -> None:
    """Where only plugins authenticate, a name without their yes is nobody."""
    async with running(plugins={ANONYMOUS: {"allow_anonymous": False}}, allow_anonymous=False) as house:
        raw = await house.raw()
        raw.send(connect("c"))
        await raw.closed(b"\x20\x02\x00\x04")
        client = await house.client("d", username="fridge-7")
        client.send(subscribe(("#", 0)))
        await client.expect(suback(0x80))


async def test_events() -> None:
    Recorder.events.clear()
    async with running(plugins={f"{HERE}.Recorder": {}}) as house:
        client = await house.client()
        client.send(subscribe(("a", 0)) + publish("a", b"x"))
        await client.expect(suback(0) + publish("a", b"x"))
        await client.leave()
        await eventually(lambda: ("disconnected", "c") in Recorder.events, "the last event")
    assert Recorder.events == [
        ("started", None),
        ("connected", "c"),
        ("subscribed", "a"),
        ("received", ("a", b"x")),
        ("disconnected", "c"),
    ]


async def test_what_a_plugins_context_offers() -> None:
    async with running(plugins={f"{HERE}.Recorder": {}}) as house:
        client = await house.client()
        client.send(subscribe(("news", 0)))
        await client.expect(suback(0))
        context = house.broker.plugins_manager.context
        await context.broadcast_message("news", b"hello")
        await client.expect(publish("news", b"hello"))
        await context.retain_message("kept", b"value", 1)
        assert context.retained_messages["kept"].data == b"value"
        assert [session.client_id for session in context.sessions] == ["c"]
        assert [(s.client_id, qos) for s, qos in context.subscriptions["news"]] == [("c", 0)]


async def test_a_plugin_that_is_not_there() -> None:
    with pytest.raises(StartError, match=r"mqtt\.plugins"):
        async with running(plugins={"no.such.Plugin": {}}):
            pass
