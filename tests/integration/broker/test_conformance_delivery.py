"""MQTT 3.1.1 statement by statement: what becomes of sessions and messages. The packets that break the rules, and the
two-way exchanges, are in test_conformance.py."""

from __future__ import annotations

import pytest

from tests.integration.broker.raw import (
    ACCEPTED,
    PINGREQ,
    RESUMED,
    ack,
    connect,
    publish,
    running,
    suback,
    subscribe,
)
from tests.waiting import eventually

TELEMETRY = "devices/d/telemetry"


async def test_a_byte_order_mark_is_a_character() -> None:
    """[MQTT-1.5.3-3]: U+FEFF is neither skipped nor stripped off."""
    async with running() as house:
        client = await house.client()
        client.send(subscribe(("\ufeffa", 0)))
        await client.expect(suback(0))
        client.send(publish("a", b"another topic") + publish("\ufeffa", b"mine"))
        await client.expect(publish("\ufeffa", b"mine"))
        await client.quiet()


async def test_topics_are_taken_as_they_are() -> None:
    """[MQTT-4.7.3-4]: no normalisation: case, an accent written in two ways, and empty levels make other topics."""
    async with running() as house:
        client = await house.client()
        client.send(subscribe(("caf\u00e9/x", 0), ("/a", 0)))
        await client.expect(suback(0, 0))
        for other in ("cafe\u0301/x", "CAF\u00c9/x", "caf\u00e9/x/", "a", "//a", "a/"):
            client.send(publish(other))
        client.send(publish("caf\u00e9/x", b"1") + publish("/a", b"2"))
        await client.expect(publish("caf\u00e9/x", b"1") + publish("/a", b"2"))
        await client.quiet()


async def test_the_longest_topic() -> None:
    """[MQTT-4.7.3-3]: 65,535 bytes, the most that its length field can say."""
    async with running() as house:
        client = await house.client()
        topic = "t" * 65_535
        client.send(subscribe((topic, 0)) + publish(topic, b"x"))
        await client.expect(suback(0) + publish(topic, b"x"))


async def test_the_fields_of_connect_in_their_order() -> None:
    """[MQTT-3.1.3-1]: client id, will topic, will message, user name, password; and [MQTT-3.1.2-9]: the will's own QoS
    and retain flag count."""
    async with running() as house:
        watcher = await house.client("watcher")
        watcher.send(subscribe(("w", 2)))
        await watcher.expect(suback(2))
        client = await house.client("name", will=("w", b"gone", 1, True), username="user", password="secret")
        assert "name" in house.broker.clients.sessions
        client.reset()
        await watcher.expect(publish("w", b"gone", qos=1))
        assert house.broker.stats.retained == 1


async def test_without_a_will_none_is_published() -> None:
    """[MQTT-3.1.2-12]."""
    async with running() as house:
        watcher = await house.client("watcher")
        watcher.send(subscribe(("#", 0)))
        await watcher.expect(suback(0))
        client = await house.client()
        client.reset()
        await eventually(lambda: house.broker.stats.connections == 1, "the end")
        await watcher.quiet()


async def test_after_a_refusal_nothing_more_is_handled() -> None:
    """[MQTT-3.1.4-5]."""
    async with running() as house:
        raw = await house.raw()
        raw.send(connect("", clean=False) + publish(TELEMETRY, qos=1) + publish("a", retain=True) + PINGREQ)
        await raw.closed(after=b"\x20\x02\x00\x02")
        assert not house.desk.messages
        assert house.broker.stats.retained == 0


async def test_retained_messages_outlive_the_session() -> None:
    """[MQTT-3.1.2-7]."""
    async with running() as house:
        client = await house.client()
        client.send(publish("r", b"kept", qos=1, retain=True))
        await client.expect(ack("puback"))
        await client.leave()
        await (await house.client(clean=True)).leave()
        late = await house.client("late")
        late.send(subscribe(("r", 0)))
        await late.expect(suback(0) + publish("r", b"kept", retain=True))


async def test_a_session_lasts_at_least_as_long_as_its_connection() -> None:
    """[MQTT-4.1.0-2]: even if nobody may stay away for any time at all."""
    async with running(session_expiry=0.0) as house:
        client = await house.client(clean=False)
        client.send(subscribe(("a", 0)))
        await client.expect(suback(0))
        house.broker.clients.expire()
        client.send(publish("a"))
        await client.expect(publish("a"))


async def test_dup_is_not_passed_on() -> None:
    """[MQTT-3.3.1-3]: a repetition on the way in is none on the way out."""
    async with running() as house:
        client = await house.client()
        client.send(subscribe(("a", 1)))
        await client.expect(suback(1))
        client.send(publish("a", b"x", qos=1, packet_id=7, dup=True))
        await client.expect(publish("a", b"x", qos=1, packet_id=1) + ack("puback", 7))


@pytest.mark.parametrize("topic", ["a", TELEMETRY])
@pytest.mark.parametrize(("qos", "answer"), [(0, b""), (1, ack("puback", 9)), (2, ack("pubrec", 9))])
async def test_each_quality_of_service_has_its_answer(topic: str, qos: int, answer: bytes) -> None:
    """[MQTT-3.3.4-1]."""
    async with running() as house:
        client = await house.client()
        client.send(publish(topic, qos=qos, packet_id=9))
        await client.expect(answer)
        await client.quiet()
        client.send(ack("pubrel", 9) if qos == 2 else b"")
        await client.expect(ack("pubcomp", 9) if qos == 2 else b"")


async def test_after_its_puback_an_identifier_names_a_new_message() -> None:
    """[MQTT-4.3.2-2]: whatever its DUP flag says."""
    async with running() as house:
        client = await house.client()
        for payload in (b"1", b"2"):
            client.send(publish(TELEMETRY, payload, qos=1, packet_id=5, dup=payload == b"2"))
            await client.expect(ack("puback", 5))
        assert house.desk.payloads == [b"1", b"2"]


async def test_a_message_goes_to_every_session_with_a_matching_subscription() -> None:
    """[MQTT-4.5.0-1]: connected or not."""
    async with running() as house:
        absent = await house.client("absent", clean=False)
        absent.send(subscribe(("a/+", 1)))
        await absent.expect(suback(1))
        await absent.leave()
        present = await house.client("present")
        present.send(subscribe(("a/#", 1)))
        await present.expect(suback(1))
        sender = await house.client("sender")
        sender.send(publish("a/b", b"x", qos=1))
        await sender.expect(ack("puback"))
        await present.expect(publish("a/b", b"x", qos=1))
        absent = await house.client("absent", clean=False, answer=RESUMED)
        await absent.expect(publish("a/b", b"x", qos=1))


async def test_pubrel_follows_the_order_of_pubrec() -> None:
    """[MQTT-4.6.0-4]."""
    async with running() as house:
        client = await house.client()
        client.send(subscribe(("a", 2)))
        await client.expect(suback(2))
        for payload in (b"1", b"2", b"3"):
            house.broker.publish("a", payload, qos=2)
        await client.expect(b"".join(publish("a", b"%d" % n, qos=2, packet_id=n) for n in (1, 2, 3)))
        client.send(ack("pubrec", 3) + ack("pubrec", 1) + ack("pubrec", 2))
        await client.expect(ack("pubrel", 3) + ack("pubrel", 1) + ack("pubrel", 2))
        client.send(b"".join(ack("pubcomp", n) for n in (1, 2, 3)))
        await client.quiet()


async def test_the_first_packet_is_connack() -> None:
    """[MQTT-3.2.0-1]: also where a retained message waits for a subscription that comes with CONNECT in one piece."""
    async with running() as house:
        client = await house.client("first")
        client.send(publish("r", b"kept", qos=1, retain=True))
        await client.expect(ack("puback"))
        raw = await house.raw()
        raw.send(connect("second") + subscribe(("r", 0)))
        await raw.expect(ACCEPTED + suback(0) + publish("r", b"kept", retain=True))
