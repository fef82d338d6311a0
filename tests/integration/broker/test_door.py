"""Who is let in, what ends a connection, and that nothing is left behind when it ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import argon2
import pytest

from bridge.broker import packets
from bridge.broker.wheel import TICK
from bridge.errors import StartError
from tests.integration.broker.house import (
    DISCONNECT,
    RecordingIntake,
    broker,
    connect,
    packet,
    publish,
    subscribe,
    text,
)
from tests.waiting import eventually

TELEMETRY = "devices/d1/telemetry"
HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """d1 and d2 are devices, olga is an operator; everybody's password is `right`."""
    file = tmp_path / "users"
    hashed = HASHER.hash("right")
    file.write_text(f"d1:{hashed}\nd2:{hashed}\nolga:{hashed}:operator\n")
    return file


@pytest.mark.parametrize(
    ("clause", "data"),
    [
        ("MQTT-3.1.0-1", b"\xc0\x00"),
        ("MQTT-3.1.0-1", publish("a")),
        ("MQTT-3.1.0-2", connect() + connect()),
        ("MQTT-3.1.2-1", packet(0x10, text("MQTX") + b"\x04\x02\x00\x00\x00\x01c")),
        ("MQTT-3.1.2-3", packet(0x10, text("MQTT") + b"\x04\x03\x00\x00\x00\x01c")),
        ("MQTT-2.2.2-2", b"\x11" + connect()[1:]),
        ("MQTT-2.2.2-2", connect() + b"\x80\x06\x00\x01\x00\x01a\x00"),
        ("MQTT-2.2.2-2", connect() + b"\xc1\x00"),
        ("MQTT-2.3.1-1", connect() + publish("a", qos=1, packet_id=0)),
        ("MQTT-3.3.1-4", connect() + b"\x36\x05\x00\x01a\x00\x01"),
        ("MQTT-3.3.1-2", connect() + b"\x38\x03\x00\x01a"),
        ("MQTT-3.3.2-2", connect() + publish("a/#")),
        ("MQTT-3.3.2-2", connect() + publish("a/+/b")),
        ("MQTT-4.7.3-1", connect() + publish("")),
        ("MQTT-1.5.3-1", connect() + packets.publish(b"a\xff", b"", 0, False)),
        ("MQTT-1.5.3-2", connect() + publish("a\0b")),
        ("MQTT-3.8.3-3", connect() + b"\x82\x02\x00\x01"),
        ("MQTT-3.8.3-4", connect() + subscribe(1, ("a", 3))),
        ("MQTT-4.7.1-2", connect() + subscribe(1, ("a/#/b", 0))),
        ("2.2.3", b"\x10\xff\xff\xff\xff\x01"),
        ("2.2.1", connect() + b"\x20\x02\x00\x00"),
        ("2.2.1", connect() + b"\xf0\x00"),
        ("2.2.1", connect() + b"\x00\x00"),
        ("3.12", connect() + b"\xc0\x01x"),
        ("PUBLISH is too short", connect() + b"\x32\x01\x00"),
        ("PUBLISH is too short", connect() + b"\x32\x04\x00\x05ab"),
    ],
)
async def test_a_protocol_error_closes_the_connection(clause: str, data: bytes) -> None:
    """[MQTT-4.8.0-1]"""
    async with broker() as door:
        client = await door.socket()
        client.send(data)
        said = await client.closed()
        assert said == (packets.connack(0) if data.startswith(connect()) else b"")
        assert door.broker.stats.closed == {"protocol_error": 1}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (packet(0x10, text("MQTT") + b"\x05\x02\x00\x00\x00\x00\x01c"), packets.BAD_PROTOCOL),
        (connect("", clean=False), packets.BAD_CLIENT_ID),
        (connect(will=("$SYS/x", b"", 0, False)), packets.NOT_AUTHORISED),
    ],
)
async def test_a_refused_connect_is_answered(data: bytes, code: int) -> None:
    """[MQTT-3.1.2-2], [MQTT-3.1.3-8]"""
    async with broker() as door:
        client = await door.socket()
        client.send(data)
        assert await client.closed() == packets.connack(code)
        assert not door.broker.clients.sessions


async def test_clients_without_an_id_are_different_clients() -> None:
    """[MQTT-3.1.3-6]"""
    async with broker() as door:
        await door.client("")
        await door.client("")
        assert door.broker.stats.sessions == 2


async def test_a_packet_larger_than_allowed_closes_the_connection_before_it_has_come() -> None:
    async with broker(max_packet_bytes=100) as door:
        client = await door.client()
        client.send(publish("a", bytes(97)))
        await client.silent()
        client.send(publish("a", bytes(98))[:50])
        await client.closed()
        assert door.broker.stats.closed == {"packet_too_large": 1}


async def test_the_depth_of_a_topic_has_a_limit() -> None:
    async with broker(max_topic_levels=4) as door:
        client = await door.client()
        client.send(publish("devices/d1/telemetry/a/b", qos=1, packet_id=1))
        await client.expect(packets.puback(1))
        assert door.intake.refused == [("devices/d1/telemetry/a/b", "too_many_levels")]
        client.send(subscribe(1, ("a/b/c/d", 0), ("a/b/c/d/e", 0)))
        await client.expect(packets.suback(1, [0, 0x80]))
        client.send(publish("a/b/c/d/e"))
        await client.closed()
        assert door.broker.stats.closed == {"too_many_levels": 1}


async def test_the_number_of_subscriptions_has_a_limit() -> None:
    async with broker(max_subscriptions=2) as door:
        client = await door.client()
        client.send(subscribe(1, ("a", 0), ("b", 0), ("c", 0), ("a", 1)))
        await client.expect(packets.suback(1, [0, 0, 0x80, 1]))


async def test_the_number_of_connections_has_a_limit() -> None:
    async with broker(max_connections=1) as door:
        first = await door.client()
        second = await door.socket()
        await second.closed()
        assert door.broker.stats.closed == {"too_many_connections": 1}
        await first.silent()


async def test_the_number_of_sessions_has_a_limit() -> None:
    async with broker(max_sessions=1) as door:
        await door.client("a", clean=False)
        second = await door.socket()
        second.send(connect("b", clean=False))
        assert await second.closed() == packets.connack(packets.UNAVAILABLE)
        await door.client("c")


async def test_a_client_that_says_nothing_is_closed() -> None:
    async with broker(connect_timeout=0.1) as door:
        client = await door.socket()
        client.send(connect()[:5])
        assert await client.closed() == b""
        assert door.broker.stats.closed == {"connect_timeout": 1}


async def test_keepalive_is_kept() -> None:
    """[MQTT-3.1.2-24]: after one and a half times of it, within the wheel's next ticks."""
    async with broker() as door:
        silent = await door.client("silent", keepalive=1)
        patient = await door.client("patient", keepalive=60)
        began = asyncio.get_running_loop().time()
        await silent.closed()
        assert 1.4 < asyncio.get_running_loop().time() - began < 1.5 + 3 * TICK
        assert door.broker.stats.closed == {"keepalive": 1}
        await patient.silent()


async def test_a_client_that_is_kept_waiting_is_not_called_silent() -> None:
    intake = RecordingIntake()
    intake.congested = True
    async with broker(intake) as door:
        client = await door.client()
        connection = next(iter(door.broker.connections))
        door.broker.wheel.tick += 1_000_000
        connection.look()
        intake.relieve()
        await client.silent()


async def test_the_newcomer_takes_over() -> None:
    """[MQTT-3.1.4-2]"""
    async with broker() as door:
        first = await door.client(will=("w", b"gone", 0, False))
        watcher = await door.client("watcher")
        await watcher.subscribe("w")
        second = await door.client()
        await first.closed()
        await watcher.expect(publish("w", b"gone"))
        await second.silent()
        assert door.broker.stats.closed == {"takeover": 1}
        assert door.broker.stats.sessions == 2


@pytest.mark.parametrize("polite", [True, False])
async def test_the_will_of_a_client(polite: bool) -> None:
    """[MQTT-3.1.2-8], [MQTT-3.14.4-3], [MQTT-3.1.2-17]"""
    async with broker() as door:
        watcher = await door.client("watcher")
        await watcher.subscribe("w", TELEMETRY, qos=1)
        client = await door.client(will=("w", b"gone", 1, True))
        client.send(DISCONNECT if polite else b"\xf0\x00")
        await client.closed()
        if polite:
            await watcher.silent()
        else:
            await watcher.expect(publish("w", b"gone", 1, 1))
        assert door.broker.stats.retained == (0 if polite else 1)


async def test_a_will_on_a_bridge_topic_reaches_the_device() -> None:
    async with broker() as door:
        client = await door.client(will=(TELEMETRY, b"{}", 1, False))
        await client.drop()
        await eventually(lambda: door.intake.payloads() == [b"{}"], "the will")


async def test_kick() -> None:
    async with broker() as door:
        client = await door.client()
        assert door.broker.kick("c")
        await client.closed()
        assert not door.broker.kick("c")
        assert door.broker.stats.closed == {"kicked": 1}


async def test_a_clean_session_ends_with_its_connection() -> None:
    """[MQTT-3.1.2-6]"""
    async with broker() as door:
        client = await door.client()
        await client.subscribe("a")
        client.send(DISCONNECT)
        await client.closed()
        await eventually(lambda: door.broker.stats.sessions == 0, "the end of the session")
        client = await door.client(clean=False)
        await client.subscribe("a")
        client.send(DISCONNECT)
        await client.closed()
        assert door.broker.stats.sessions == 1
        await door.client(clean=True)
        assert door.broker.stats.subscriptions == 0


async def test_a_session_whose_client_stays_away_expires() -> None:
    async with broker(session_expiry=0.0) as door:
        client = await door.client(clean=False)
        await client.subscribe("a")
        await client.drop()
        await eventually(lambda: door.broker.stats.connections == 0, "it is gone")
        door.broker.clients.expire()
        assert door.broker.stats.sessions == 0
        assert door.broker.stats.subscriptions == 0


# ---------------------------------------------------------------------- users


async def test_strangers_are_only_allowed_on_loopback() -> None:
    with pytest.raises(StartError, match="BRIDGE_MQTT__ALLOW_ANONYMOUS"):
        async with broker(host="0.0.0.0"):  # noqa: S104 - that it is refused is what is tested
            pass


async def test_a_broker_that_lets_nobody_in_does_not_start() -> None:
    with pytest.raises(StartError, match="nobody could connect"):
        async with broker(allow_anonymous=False):
            pass


async def test_a_port_that_is_taken() -> None:
    async with broker() as door:
        with pytest.raises(StartError, match=f"port {door.broker.bound_port} .*BRIDGE_MQTT__PORT"):
            async with broker(port=door.broker.bound_port):
                pass


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, packets.NOT_AUTHORISED),
        ({"username": "d1"}, packets.BAD_CREDENTIALS),
        ({"username": "d1", "password": "wrong"}, packets.BAD_CREDENTIALS),
        ({"username": "nobody", "password": "right"}, packets.BAD_CREDENTIALS),
    ],
)
async def test_a_wrong_password_changes_nothing(users: Path, options: dict[str, str], code: int) -> None:
    async with broker(allow_anonymous=False, password_file=users) as door:
        device = await door.client("x", username="d1", password="right", clean=False)
        stranger = await door.socket()
        stranger.send(connect("x", clean=True, will=("w", b"", 0, True), **options))  # type: ignore[arg-type]  # they are strings
        assert await stranger.closed() == packets.connack(code)
        await device.silent()
        assert door.broker.stats.sessions == 1
        assert door.broker.stats.retained == 0


async def test_what_comes_before_the_password_is_checked_waits(users: Path) -> None:
    async with broker(allow_anonymous=False, password_file=users) as door:
        device = await door.socket()
        device.send(connect("x", username="d1", password="right"), publish(TELEMETRY, b"1", 1, 1))
        await asyncio.sleep(0)
        device.send(publish(TELEMETRY, b"2", 1, 2), b"\xc0\x00")
        await device.expect(packets.connack(0), packets.puback(1), packets.puback(2), packets.PINGRESP_BYTES)


async def test_a_client_that_leaves_while_its_password_is_checked(users: Path) -> None:
    async with broker(allow_anonymous=False, password_file=users) as door:
        for _ in range(20):
            client = await door.socket()
            client.send(connect("x", username="d1", password="right"))
            await client.drop()
        await eventually(lambda: not door.broker.connections, "all gone")
        assert not door.broker.clients.sessions


async def test_nobody_ends_or_inherits_another_users_session(users: Path) -> None:
    async with broker(allow_anonymous=False, password_file=users) as door:
        first = await door.client("x", username="d1", password="right", clean=False)
        for clean in (True, False):
            second = await door.socket()
            second.send(connect("x", username="d2", password="right", clean=clean))
            assert await second.closed() == packets.connack(packets.BAD_CLIENT_ID)
        await first.silent()


async def test_a_device_may_only_be_itself(users: Path) -> None:
    async with broker(allow_anonymous=False, password_file=users) as door:
        device = await door.client("x", username="d1", password="right")
        wanted = ["devices/d1/command/request", "devices/d1/#", "devices/d2/ping", "#", "weather"]
        device.send(subscribe(1, *((f, 1) for f in wanted)))
        await device.expect(packets.suback(1, [1, 0x80, 0x80, 0x80, 0x80]))
        device.send(publish(TELEMETRY, b"1", 1, 1))
        await device.expect(packets.puback(1))
        device.send(publish("devices/d2/telemetry", b"1", 1, 2))
        await device.closed()
        assert door.intake.payloads() == [b"1"]
        assert door.broker.stats.closed == {"not_authorised": 1}


async def test_an_operator_requests_and_reads(users: Path) -> None:
    async with broker(allow_anonymous=False, password_file=users) as door:
        operator = await door.client("x", username="olga", password="right")
        await operator.subscribe("#", qos=0)
        operator.send(publish("devices/d1/command", b"{}", 1, 1))
        await operator.expect(publish("devices/d1/command", b"{}"), packets.puback(1))
        operator.send(publish("devices/d1/command/request", b"{}"))
        await operator.closed()
        assert door.broker.stats.closed == {"not_authorised": 1}


async def test_a_will_that_may_not_be_published_is_not(users: Path) -> None:
    async with broker(allow_anonymous=False, password_file=users) as door:
        device = await door.client("x", username="d1", password="right", will=("devices/d2/pong", b"", 0, False))
        await device.drop()
        await eventually(lambda: door.broker.stats.dropped["will_not_authorised"] == 1, "the will is dropped")
        assert not door.intake.messages


async def test_a_subscription_that_is_no_longer_allowed_is_not_resumed(users: Path) -> None:
    async with broker(allow_anonymous=False, password_file=users) as door:
        device = await door.client("x", username="d1", password="right", clean=False)
        session = door.broker.clients.sessions["x"]
        session.subscriptions["#"] = 0  # as an operator's, that he was yesterday
        door.broker.exchange.tree.add("#", session, 0)
        await device.drop()
        await eventually(lambda: not door.broker.connections, "it is gone")
        await door.client("x", username="d1", password="right", clean=False, present=True)
        assert door.broker.stats.subscriptions == 0
