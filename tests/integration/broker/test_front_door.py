"""Who gets in, and what strangers and clients without rights cannot do."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from pathlib import Path

import argon2
import pytest

from bridge.broker.access import Role
from bridge.broker.listener import ACCEPTED_TOGETHER
from bridge.errors import StartError, StorageUnavailableError
from bridge.topics import Grants
from tests.integration.broker.raw import (
    ACCEPTED,
    RESUMED,
    ack,
    connect,
    publish,
    running,
    suback,
    subscribe,
)
from tests.waiting import eventually

BAD_CREDENTIALS, NOT_AUTHORISED, BAD_CLIENT_ID = b"\x20\x02\x00\x04", b"\x20\x02\x00\x05", b"\x20\x02\x00\x02"
UNAVAILABLE = b"\x20\x02\x00\x03"
QUICK = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """fridge-7 (password cold), olga the operator (boss), token-9 (a random token), and `a b`, which is no device."""
    token = hashlib.sha256(b"long and random").hexdigest()
    path = tmp_path / "users"
    path.write_text(
        f"# users\n\nfridge-7:{QUICK.hash('cold')}\nolga:{QUICK.hash('boss')}:operator\n"
        f"token-9:$sha256${token}\na b:{QUICK.hash('x')}\n"
    )
    return path


@pytest.mark.parametrize(
    ("name", "password", "answer"),
    [
        ("fridge-7", "cold", ACCEPTED),
        ("token-9", "long and random", ACCEPTED),
        ("fridge-7", "warm", BAD_CREDENTIALS),
        ("token-9", "short", BAD_CREDENTIALS),
        ("nobody", "cold", BAD_CREDENTIALS),
        ("fridge-7", None, BAD_CREDENTIALS),
        (None, None, NOT_AUTHORISED),
    ],
)
async def test_passwords(users: Path, name: str | None, password: str | None, answer: bytes) -> None:
    async with running(password_file=users, allow_anonymous=False) as house:
        raw = await house.raw()
        raw.send(connect("c", username=name, password=password))
        await raw.expect(answer)
        if answer == ACCEPTED:
            await raw.quiet()
        else:
            await raw.closed()
            assert not house.broker.clients.sessions


class Kept:
    """Credentials of one device, `fridge-7` (password frost), as a database would keep them."""

    def __init__(self) -> None:
        self.away = False

    async def check(self, username: str, password: bytes) -> bool | None:
        """As `Credentials` says."""
        if self.away:
            raise StorageUnavailableError("the database is away")
        return password == b"frost" if username == "fridge-7" else None

    async def admits(self, username: str) -> bool:
        """As `Credentials` says: all but one."""
        return username != "stranger"

    async def grants(self, username: str) -> Grants:
        """As `Credentials` says."""
        return Grants(("site/%id%/#",), ("firmware/+",))


async def test_kept_credentials_are_asked_before_the_password_file(users: Path) -> None:
    """And who is not known there may still be a user of the file."""
    kept = Kept()
    async with running(credentials=kept, password_file=users, allow_anonymous=False) as house:
        client = await house.client("c", username="fridge-7", password="frost")
        client.send(subscribe(("devices/fridge-7/ping", 0), ("#", 0)))
        await client.expect(suback(0, 0x80))  # a device, with a device's rights
        # And with what its profile grants beside.
        client.send(subscribe(("firmware/7", 0), ("firmware/#", 0)))
        await client.expect(suback(0, 0x80))
        client.send(publish("site/fridge-7/door", b"x", 1, 7))
        await client.expect(bytes((0x40, 2, 0, 7)))
        client.send(publish("site/other/door", b"x", 1, 8))
        await client.closed()
        await house.client("o", username="olga", password="boss")
        for name, password in (("fridge-7", "cold"), ("fridge-7", None), ("nobody", "frost")):
            raw = await house.raw()
            raw.send(connect("d", username=name, password=password))
            await raw.closed(BAD_CREDENTIALS)
        kept.away = True
        # Whether olga has a token cannot be known: the file does not decide instead.
        for name, password in (("fridge-7", "frost"), ("olga", "boss")):
            raw = await house.raw()
            raw.send(connect("d", username=name, password=password))
            await raw.closed(UNAVAILABLE)


async def test_a_name_that_nobody_knows_claims_nothing_where_anonymous_clients_may_come() -> None:
    async with running(credentials=Kept()) as house:
        client = await house.client("c", username="somebody", password="x")
        client.send(subscribe(("#", 0)))
        await client.expect(suback(0))
        raw = await house.raw()
        raw.send(connect("d", username="fridge-7", password="x"))
        await raw.closed(BAD_CREDENTIALS)


async def test_what_follows_connect_waits_for_the_password(users: Path) -> None:
    async with running(password_file=users) as house:
        raw = await house.raw()
        hello = connect("c", username="fridge-7", password="cold")
        raw.send(hello + publish("devices/fridge-7/telemetry", b"x" * 100_000, qos=1) + b"\xc0\x00")
        await raw.expect(ACCEPTED)
        await raw.expect(ack("puback") + b"\xd0\x00")
        assert len(house.desk.messages) == 1


async def test_a_stranger_disturbs_nobody(users: Path) -> None:
    """Take-over, wiping a session and its will: nothing before the password is right, and not for another user, who is
    told that the identifier is taken, [MQTT-3.1.3-9]."""
    async with running(password_file=users, allow_anonymous=False) as house:
        client = await house.client("c", clean=False, username="fridge-7", password="cold")
        client.send(subscribe(("devices/fridge-7/ping", 1)))
        await client.expect(suback(1))
        wrong = await house.raw()
        wrong.send(connect("c", username="fridge-7", password="warm"))
        await wrong.closed(BAD_CREDENTIALS)
        other = await house.raw()
        other.send(connect("c", username="olga", password="boss"))
        await other.closed(BAD_CLIENT_ID)
        await client.quiet()
        await client.leave()
        other = await house.raw()
        other.send(connect("c", username="olga", password="boss"))
        await other.closed(BAD_CLIENT_ID)
        await house.client("c", clean=False, username="fridge-7", password="cold", answer=RESUMED)


async def test_a_device_keeps_to_its_own(users: Path) -> None:
    """[MQTT-3.3.5-2]: a message that may not be published closes the connection."""
    async with running(password_file=users) as house:
        client = await house.client("c", username="fridge-7", password="cold")
        client.send(
            subscribe(("devices/fridge-7/ping", 0), ("devices/fridge-8/ping", 0), ("devices/+/ping", 0), ("#", 0))
        )
        await client.expect(suback(0, 0x80, 0x80, 0x80))
        client.send(subscribe(("$SYS/#", 0), ("devices/fridge-7/telemetry", 0), packet_id=2))
        await client.expect(suback(0x80, 0x80, packet_id=2))
        for topic in ("devices/fridge-8/telemetry", "devices/fridge-7/command", "devices/fridge-7/presence", "house"):
            client = await house.client("c", username="fridge-7", password="cold")
            client.send(publish(topic, qos=1))
            await client.closed()
        assert not house.desk.messages
        assert house.broker.stats.closed["not_authorised"] == 4


async def test_a_will_needs_the_right_to_publish_it(users: Path) -> None:
    async with running(password_file=users) as house:
        for topic in ("devices/fridge-8/event/x", "devices/fridge-7/event/x"):
            client = await house.client(
                "c", username="fridge-7", password="cold", will=(topic, topic.encode(), 0, False)
            )
            client.reset()
            await eventually(lambda: not house.broker.connections, "the end")
        await eventually(lambda: house.desk.messages, "the will")
        assert house.desk.payloads == [b"devices/fridge-7/event/x"]


async def test_an_operator_asks_and_reads(users: Path) -> None:
    async with running(password_file=users) as house:
        client = await house.client("c", username="olga", password="boss")
        client.send(subscribe(("#", 0), ("$SYS/#", 0)))
        await client.expect(suback(0, 0))
        client.send(publish("devices/fridge-7/command", b"{}", qos=1) + publish("house/kitchen", b"x"))
        await client.expect(publish("devices/fridge-7/command", b"{}") + ack("puback") + publish("house/kitchen", b"x"))
        client.send(publish("devices/fridge-7/telemetry", b"{}"))
        await client.closed()


async def test_a_user_who_is_neither_may_do_nothing(users: Path) -> None:
    async with running(password_file=users) as house:
        client = await house.client("c", username="a b", password="x")
        client.send(subscribe(("a", 0), ("devices/a b/ping", 0)))
        await client.expect(suback(0x80, 0x80))
        client.send(publish("devices/a b/telemetry"))
        await client.closed()


async def test_rights_are_checked_again(users: Path) -> None:
    """A kept subscription that is no longer allowed ends, and what waits because of it is not delivered."""
    async with running(password_file=users) as house:
        client = await house.client("c", clean=False, username="olga", password="boss")
        client.send(subscribe(("secret", 1), ("devices/olga/ping", 1)))
        await client.expect(suback(1, 1))
        await client.leave()
        house.broker.publish("secret", b"x", qos=1)
        house.broker.publish("devices/olga/ping", b"y", qos=1)
        passwords = house.broker.login._passwords
        assert passwords is not None
        passwords._users = {n: u._replace(role=Role.DEVICE) for n, u in passwords._users.items()}
        client = await house.client("c", clean=False, username="olga", password="boss", answer=RESUMED)
        await client.expect(publish("devices/olga/ping", b"y", qos=1))
        await client.quiet()
        assert house.broker.stats.subscriptions == 1


async def test_failed_logins_of_an_address_are_limited(users: Path) -> None:
    async with running(password_file=users, max_failed_logins=2) as house:
        for answer in (BAD_CREDENTIALS, BAD_CREDENTIALS, NOT_AUTHORISED):
            raw = await house.raw()
            raw.send(connect("c", username="fridge-7", password="warm"))
            await raw.closed(answer)
        raw = await house.raw()
        raw.send(connect("c", username="fridge-7", password="cold"))
        await raw.closed(NOT_AUTHORISED)
        house.broker.login.forgive()
        await house.client("c", username="fridge-7", password="cold")


async def test_many_at_once_are_let_in_in_portions() -> None:
    """And what they send right behind their CONNECT is handled after it."""
    async with running() as house:
        house.broker.portions._size = 2
        raws = [await house.raw() for _ in range(20)]
        for n, raw in enumerate(raws):
            raw.send(connect(f"c{n}") + publish("devices/d/telemetry", b"%d" % n, qos=1))
        for raw in raws:
            await raw.expect(ACCEPTED + ack("puback"))
            raw.reset()
        await eventually(lambda: not house.broker.connections, "the end of all")
        assert sorted(map(int, house.desk.payloads)) == list(range(20))
        assert not house.broker.clients.sessions


async def test_a_turn_of_the_loop_accepts_several() -> None:
    async with running() as house:
        address = "127.0.0.1", house.broker.bound_port
        # The system makes the connections; the broker takes them when it gets its turn.
        sockets = [socket.create_connection(address) for _ in range(5 * ACCEPTED_TOGETHER)]
        turns = 0
        while len(house.broker.connections) < len(sockets):
            await asyncio.sleep(0)
            turns += 1
        assert turns < 2 * ACCEPTED_TOGETHER
        for each in sockets:
            each.close()
        await eventually(lambda: not house.broker.connections, "the end of all")


async def test_the_time_to_say_hello() -> None:
    async with running(connect_timeout=0.2) as house:
        silent, talking = await house.raw(), await house.raw()
        talking.send(connect("c")[:5])
        await silent.closed()
        await talking.closed()
        assert house.broker.stats.closed == {"connect_timeout": 2}


async def test_the_number_of_connections() -> None:
    async with running(max_connections=2) as house:
        first, second = await house.client("1"), await house.client("2")
        third = await house.raw()
        await third.closed()
        await first.leave()
        await eventually(lambda: len(house.broker.connections) == 1, "room")
        await house.client("3")
        await second.quiet()


async def test_the_number_of_sessions() -> None:
    async with running(max_sessions=1) as house:
        await house.client("1", clean=False)
        raw = await house.raw()
        raw.send(connect("2", clean=False))
        await raw.closed(b"\x20\x02\x00\x03")
        await house.client("3")


async def test_a_stranger_is_given_little_memory() -> None:
    async with running() as house:
        raw = await house.raw()
        raw.send(b"\x10\x80\x80\x04")
        await raw.closed()
        assert house.broker.stats.closed == {"packet_too_large": 1}


async def test_a_large_packet_right_after_connect() -> None:
    async with running() as house:
        raw = await house.raw()
        raw.send(connect("c") + publish("a", b"x" * 200_000, qos=1))
        await raw.expect(ACCEPTED + ack("puback"))


async def test_anonymous_only_on_loopback() -> None:
    with pytest.raises(StartError, match="ALLOW_ANONYMOUS"):
        async with running(host="0.0.0.0"):  # noqa: S104 - that is what must be refused
            pass


async def test_nobody_could_connect() -> None:
    with pytest.raises(StartError, match="PASSWORD_FILE"):
        async with running(allow_anonymous=False):
            pass


async def test_a_taken_port_is_named() -> None:
    async with running() as house:
        port = house.broker.bound_port
        with pytest.raises(StartError, match=f"port {port} .*BRIDGE_MQTT__PORT"):
            async with running(port=port):
                pass


async def test_many_abandoned_sockets_leave_nothing(users: Path) -> None:
    """Resets before, during and after CONNECT."""
    async with running(password_file=users) as house:
        for n in range(60):
            raw = await house.raw()
            hello = connect(f"c{n}", username="fridge-7", password="cold")
            raw.send(hello[: n % len(hello)] if n % 2 else hello)
            raw.reset()
            plain = socket.create_connection(("127.0.0.1", house.broker.bound_port))
            plain.close()
        await eventually(lambda: not house.broker.connections, "all to be gone")
        await eventually(lambda: not house.broker.login._checks, "the last check")
        assert not house.broker.clients.sessions
