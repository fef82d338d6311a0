"""MQTT 3.1.1 statement by statement, byte for byte."""

from __future__ import annotations

import pytest

from bridge.receipts import Outcome
from tests.integration.broker.raw import (
    ACCEPTED,
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    RESUMED,
    ack,
    connect,
    packet,
    publish,
    running,
    suback,
    subscribe,
    text,
    unsubscribe,
)
from tests.waiting import eventually

HEAD = text("MQTT") + b"\x04"
TELEMETRY = "devices/d/telemetry"

CLOSED_AT_ONCE = {
    "MQTT-3.1.0-1 the first packet is no CONNECT": PINGREQ,
    "MQTT-3.1.0-1 the first packet is a PUBLISH": publish("a"),
    "MQTT-3.1.2-1 another protocol name": packet(0x10, text("mqtt") + b"\x04\x02\x00\x3c" + text("c")),
    "MQTT-3.1.2-3 the reserved connect flag": packet(0x10, HEAD + b"\x03\x00\x3c" + text("c")),
    "MQTT-3.1.2-11 will QoS without a will": packet(0x10, HEAD + b"\x0a\x00\x3c" + text("c")),
    "MQTT-3.1.2-14 will QoS 3": packet(0x10, HEAD + b"\x1e\x00\x3c" + text("c") + text("w") + text("p")),
    "MQTT-3.1.2-15 will retain without a will": packet(0x10, HEAD + b"\x22\x00\x3c" + text("c")),
    "MQTT-3.1.2-22 a password without a user name": packet(0x10, HEAD + b"\x42\x00\x3c" + text("c") + text("p")),
    "MQTT-3.1.2-9 a will flag without a will": packet(0x10, HEAD + b"\x06\x00\x3c" + text("c")),
    "MQTT-3.1.2-11 a will without its flag": packet(0x10, HEAD + b"\x02\x00\x3c" + text("c") + text("w") + text("p")),
    "MQTT-3.1.2-13 will QoS 2 without a will": packet(0x10, HEAD + b"\x12\x00\x3c" + text("c")),
    "MQTT-3.1.2-18 a user name without its flag": packet(0x10, HEAD + b"\x02\x00\x3c" + text("c") + text("u")),
    "MQTT-3.1.2-19 a flag without a user name": packet(0x10, HEAD + b"\x82\x00\x3c" + text("c")),
    "MQTT-3.1.2-20 a password without its flag": packet(0x10, HEAD + b"\x82\x00\x3c" + text("c") + 2 * text("u")),
    "MQTT-3.1.2-21 a flag without a password": packet(0x10, HEAD + b"\xc2\x00\x3c" + text("c") + text("u")),
    "MQTT-3.1.3-3 no client id": packet(0x10, HEAD + b"\x02\x00\x3c"),
    "MQTT-3.1.3-4 a client id that is not UTF-8": connect(b"\xff\xfe"),
    "MQTT-3.1.3-10 a will topic that is not UTF-8": connect(will=(b"\xff", b"", 0, False)),
    "MQTT-3.1.3-11 a user name that is not UTF-8": packet(0x10, HEAD + b"\x82\x00\x3c" + text("c") + text(b"\xff")),
    "MQTT-1.5.3-1 a surrogate in UTF-8": connect(b"\xed\xa0\x80"),
    "MQTT-1.5.3-2 NUL in a client id": connect(b"a\0b"),
    "MQTT-2.2.2-2 flags in CONNECT": b"\x11" + connect()[1:],
    "2.2.3 a Remaining Length of five bytes": b"\x10\x80\x80\x80\x80\x01",
    "3.1 CONNECT ends in the middle of a field": packet(0x10, HEAD),
    "3.1 CONNECT is longer than its fields": packet(0x10, HEAD + b"\x02\x00\x3c" + text("c") + b"x"),
}


@pytest.mark.parametrize("case", CLOSED_AT_ONCE)
async def test_a_stranger_is_closed(case: str) -> None:
    """[MQTT-3.1.4-1] without a CONNACK, [MQTT-3.2.2-6]."""
    async with running() as house:
        raw = await house.raw()
        raw.send(CLOSED_AT_ONCE[case])
        await raw.closed()
        await eventually(lambda: not house.broker.connections, "the connection to be gone")
        assert not house.broker.clients.sessions


CLOSED = {
    "MQTT-3.1.0-2 a second CONNECT": connect(),
    "MQTT-2.2.2-2 flags in SUBSCRIBE, MQTT-3.8.1-1": b"\x80" + subscribe(("a", 0))[1:],
    "MQTT-2.2.2-2 flags in UNSUBSCRIBE, MQTT-3.10.1-1": b"\xa0" + unsubscribe("a")[1:],
    "MQTT-2.2.2-2 flags in PUBREL, MQTT-3.6.1-1": b"\x60\x02\x00\x01",
    "MQTT-2.2.2-2 flags in PUBACK": b"\x41\x02\x00\x01",
    "MQTT-3.14.1-1 flags in DISCONNECT": b"\xe1\x00",
    "2.2.1 packet type 0": b"\x00\x00",
    "2.2.1 packet type 15": b"\xf0\x00",
    "2.2.1 a CONNACK from a client": ACCEPTED,
    "2.2.1 a PINGRESP from a client": PINGRESP,
    "MQTT-3.3.1-4 QoS 3": packet(0x36, text("a") + b"\x00\x01x"),
    "MQTT-3.3.1-2 DUP with QoS 0": publish("a", dup=True),
    "MQTT-3.3.2-1 a topic that is not UTF-8": publish(b"a\xff"),
    "MQTT-3.3.2-2 a wildcard in a topic, MQTT-4.7.1-1": publish("a/+"),
    "MQTT-3.3.2-2 another": publish("a/#"),
    "MQTT-4.7.3-1 an empty topic": publish(""),
    "MQTT-4.7.3-2 NUL in a topic": publish("a\0b"),
    "MQTT-2.3.1-1 packet identifier 0 in PUBLISH": publish("a", qos=1, packet_id=0),
    "MQTT-2.3.1-1 packet identifier 0 in SUBSCRIBE": subscribe(("a", 0), packet_id=0),
    "MQTT-2.3.1-1 packet identifier 0 in UNSUBSCRIBE": unsubscribe("a", packet_id=0),
    "3.3 a PUBLISH that ends in its topic": packet(0x30, b"\x00\x05ab"),
    "3.3 a PUBLISH that ends before its packet identifier": packet(0x32, text("a") + b"\x00"),
    "3.3 a PUBLISH without anything": packet(0x30, b""),
    "MQTT-3.8.3-3 SUBSCRIBE without a filter": packet(0x82, b"\x00\x01"),
    "MQTT-3.8.3-4 requested QoS 3": subscribe(("a", 3)),
    "MQTT-3-8.3-4 (so written in the standard) reserved bits in the requested QoS": subscribe(("a", 0x81)),
    "MQTT-3.8.3-1 a filter that is not UTF-8": packet(0x82, b"\x00\x01" + text(b"\xff") + b"\x00"),
    "MQTT-4.7.1-2 # before the end": subscribe(("a/#/b", 0)),
    "MQTT-4.7.1-2 # in a level": subscribe(("a#", 0)),
    "MQTT-4.7.1-3 + in a level": subscribe(("a+/b", 0)),
    "MQTT-4.7.3-1 an empty filter": subscribe(("", 0)),
    "MQTT-4.7.3-2 NUL in a filter": subscribe(("a\0b", 0)),
    "MQTT-3.10.3-1 UNSUBSCRIBE from what is not UTF-8": packet(0xA2, b"\x00\x01" + text(b"\xff")),
    "MQTT-4.7.3-1 UNSUBSCRIBE from an empty filter": unsubscribe(""),
    "MQTT-3.10.3-2 UNSUBSCRIBE without a filter": packet(0xA2, b"\x00\x01"),
    "3.4 a PUBACK of three bytes": b"\x40\x03\x00\x01\x00",
    "3.12 a PINGREQ with a body": b"\xc0\x01x",
    "4.7.2 a topic that begins with $": publish("$SYS/broker/uptime"),
    "no packet beyond max_packet_bytes": b"\x30\xff\xff\xff\x7f",
    "MQTT-4.3.3-1 PUBREL before PUBREC": publish(TELEMETRY, qos=2) + ack("pubrel"),
}


@pytest.mark.parametrize("case", CLOSED)
async def test_a_client_is_closed(case: str) -> None:
    """[MQTT-4.8.0-1]."""
    async with running() as house:
        house.desk.settles = None
        client = await house.client(will=("will", b"gone", 0, False))
        witness = await house.client("witness")
        witness.send(subscribe(("will", 0)))
        await witness.expect(suback(0))
        client.send(CLOSED[case])
        await client.closed()
        # [MQTT-3.1.2-8] the will is published when the server closes because of a protocol error.
        await witness.expect(publish("will", b"gone"))
        await witness.leave()


ANSWERED = {
    "MQTT-3.1.2-2 level 5 of MQTT": (
        packet(0x10, text("MQTT") + b"\x05\x02\x00\x3c\x00" + text("c")),
        b"\x20\x02\x00\x01",
    ),
    "MQTT-3.1.2-2 MQTT 3.1": (packet(0x10, text("MQIsdp") + b"\x03\x02\x00\x3c" + text("c")), b"\x20\x02\x00\x01"),
    "MQTT-3.1.3-8 no client id for a kept session": (connect("", clean=False), b"\x20\x02\x00\x02"),
}


@pytest.mark.parametrize("case", ANSWERED)
async def test_a_stranger_is_answered_and_closed(case: str) -> None:
    """[MQTT-3.2.2-5], [MQTT-3.2.2-4]."""
    sent, answer = ANSWERED[case]
    async with running() as house:
        raw = await house.raw()
        raw.send(sent)
        await raw.closed(after=answer)
        assert not house.broker.clients.sessions


async def test_client_ids() -> None:
    """[MQTT-3.1.3-5] long ones and unusual letters; [MQTT-3.1.3-6] none, and two of them at once; [MQTT-3.1.4-4]."""
    async with running() as house:
        for client_id in ("a" * 23, "0" * 100, "grüße/+#", "", ""):
            await house.client(client_id)
        assert len(house.broker.clients.sessions) == 5


async def test_takeover() -> None:
    """[MQTT-3.1.4-2], and [MQTT-3.1.2-8] for the will of the one that is cut off."""
    async with running() as house:
        witness = await house.client("witness")
        witness.send(subscribe(("will", 0)))
        await witness.expect(suback(0))
        first = await house.client("same", will=("will", b"gone", 0, False))
        second = await house.client("same")
        await first.closed()
        await witness.expect(publish("will", b"gone"))
        await second.quiet()
        assert house.broker.stats.closed["takeover"] == 1


async def test_a_disconnect_discards_the_will() -> None:
    """[MQTT-3.14.4-3], [MQTT-3.1.2-10]."""
    async with running() as house:
        witness = await house.client("witness")
        witness.send(subscribe(("will", 0)))
        await witness.expect(suback(0))
        client = await house.client(will=("will", b"gone", 0, False))
        await client.leave()
        await witness.quiet()


@pytest.mark.parametrize("retain", [False, True])
async def test_a_will(retain: bool) -> None:
    """[MQTT-3.1.2-8] after a broken line; [MQTT-3.1.2-16], [MQTT-3.1.2-17] retained or not; at its own QoS."""
    async with running() as house:
        client = await house.client(will=("will", b"gone", 1, retain))
        witness = await house.client("witness")
        witness.send(subscribe(("will", 2)))
        await witness.expect(suback(2))
        client.reset()
        await witness.expect(publish("will", b"gone", qos=1))
        witness.send(ack("puback"))
        late = await house.client("late")
        late.send(subscribe(("will", 0)))
        await late.expect(suback(0) + (publish("will", b"gone", retain=True) if retain else b""))
        await late.quiet()


async def test_ping() -> None:
    """[MQTT-3.12.4-1]."""
    async with running() as house:
        client = await house.client()
        client.send(PINGREQ * 3)
        await client.expect(PINGRESP * 3)


async def test_keepalive() -> None:
    """[MQTT-3.1.2-24]: closed after one and a half times the keepalive, and not before."""
    async with running() as house:
        client = await house.client("silent", keepalive=1)
        other = await house.client("forever", keepalive=0)
        await client.closed()
        assert house.broker.stats.closed == {"keepalive": 1}
        await other.quiet()


async def test_what_follows_a_disconnect_is_not_looked_at() -> None:
    """[MQTT-3.14.4-2] binds the client; what it sends all the same is not handled."""
    async with running() as house:
        client = await house.client()
        client.send(DISCONNECT + publish(TELEMETRY))
        await client.closed()
        assert not house.desk.messages


async def test_subscribe() -> None:
    """One code per filter, in order, under the same packet identifier: [MQTT-3.8.4-1], [MQTT-3.8.4-2], [MQTT-3.8.4-4],
    [MQTT-3.8.4-5], [MQTT-3.9.3-1], [MQTT-3.9.3-2], [MQTT-2.3.1-7]."""
    async with running(max_topic_levels=4) as house:
        client = await house.client()
        client.send(subscribe(("a", 0), ("b/+", 2), ("1/2/3/4/5", 0), ("#", 1), packet_id=777))
        await client.expect(suback(0, 2, 0x80, 1, packet_id=777))
        client.send(subscribe(*((f"f/{n}", 0) for n in range(97)), ("one/too/many", 0), ("a", 1)))
        await client.expect(suback(*(0,) * 97, 0x80, 1))


async def test_the_lower_qos_counts_and_overlapping_filters_are_one() -> None:
    """[MQTT-3.8.4-6], [MQTT-3.3.5-1]; [MQTT-2.3.1-5], [MQTT-4.3.1-1]: at QoS 0 no identifier and no DUP."""
    async with running() as house:
        client = await house.client()
        client.send(subscribe(("a/#", 0), ("a/+", 1), ("a/b", 0)))
        await client.expect(suback(0, 1, 0))
        sender = await house.client("sender")
        sender.send(publish("a/b", b"2", qos=2) + publish("a/b", b"0"))
        await sender.expect(ack("pubrec"))
        await client.expect(publish("a/b", b"2", qos=1) + publish("a/b", b"0"))
        await client.quiet()


async def test_subscribing_again_replaces() -> None:
    """[MQTT-3.8.4-3]: the QoS changes, retained messages are sent again."""
    async with running() as house:
        client = await house.client()
        client.send(publish("a", b"kept", retain=True, qos=1) + subscribe(("a", 0)))
        await client.expect(ack("puback") + suback(0) + publish("a", b"kept", retain=True))
        client.send(subscribe(("a", 1)))
        await client.expect(suback(1) + publish("a", b"kept", retain=True, qos=1))
        assert house.broker.stats.subscriptions == 1


async def test_unsubscribe() -> None:
    """No new messages, but what is in flight is completed; always answered, once: [MQTT-3.10.4-1], [MQTT-3.10.4-2],
    [MQTT-3.10.4-3], [MQTT-3.10.4-4], [MQTT-3.10.4-5], [MQTT-3.10.4-6], [MQTT-2.3.1-7]."""
    async with running() as house:
        client = await house.client()
        client.send(subscribe(("a", 1), ("b/#", 0)))
        await client.expect(suback(1, 0))
        client.send(publish("a", qos=0) + publish("a", b"y", qos=1) + unsubscribe("a", "never", packet_id=9))
        await client.expect(publish("a") + publish("a", b"y", qos=1) + ack("puback") + ack("unsuback", 9))
        client.send(publish("a") + publish("b") + ack("puback"))
        await client.expect(publish("b"))
        await client.quiet()


async def test_retained() -> None:
    """[MQTT-3.3.1-5], [MQTT-3.3.1-6], [MQTT-3.3.1-7], [MQTT-3.3.1-8], [MQTT-3.3.1-9], [MQTT-3.3.1-10],
    [MQTT-3.3.1-11], [MQTT-3.3.1-12]."""
    async with running() as house:
        client = await house.client()
        client.send(publish("r/1", b"old", retain=True) + publish("r/1", b"new", retain=True))
        client.send(publish("r/2", b"two", retain=True) + publish("r/2", b"not retained"))
        client.send(publish("r/3", b"three", retain=True) + publish("r/3", b"", retain=True))
        client.send(subscribe(("r/+", 0)))
        await client.expect(suback(0) + publish("r/1", b"new", retain=True) + publish("r/2", b"two", retain=True))
        # To those who are subscribed already it is a new message like any other.
        client.send(publish("r/1", b"newer", retain=True) + publish("r/1", b"", retain=True))
        await client.expect(publish("r/1", b"newer") + publish("r/1", b""))
        assert house.broker.stats.retained == 1


async def test_dollar_topics_and_wildcards() -> None:
    """[MQTT-4.7.2-1], [MQTT-3.3.2-3]; 4.7.1.2: `sport/#` matches `sport`."""
    async with running() as house:
        client = await house.client()
        client.send(subscribe(("#", 0), ("+/monitor", 0), ("sport/#", 0)))
        await client.expect(suback(0, 0, 0))
        house.broker.publish("$SYS/monitor", b"no")
        house.broker.publish("sport", b"yes")
        await client.expect(publish("sport", b"yes"))
        client.send(subscribe(("$SYS/#", 0)))
        await client.expect(suback(0))
        house.broker.publish("$SYS/monitor", b"now")
        await client.expect(publish("$SYS/monitor", b"now"))


async def test_qos_1_to_a_client_is_sent_again_with_dup() -> None:
    """In order, with the same identifiers, until acknowledged: [MQTT-4.4.0-1], [MQTT-4.6.0-1], [MQTT-3.3.1-1],
    [MQTT-4.3.2-1], [MQTT-2.3.1-4], [MQTT-3.1.2-5]; and CONNACK before everything, [MQTT-3.2.0-1]."""
    async with running() as house:
        client = await house.client(clean=False)
        client.send(subscribe(("a", 1)))
        await client.expect(suback(1))
        for payload in (b"1", b"2", b"3"):
            house.broker.publish("a", payload, qos=1)
        await client.expect(b"".join(publish("a", bytes(str(n), "ascii"), qos=1, packet_id=n) for n in (1, 2, 3)))
        client.send(ack("puback", 2))
        await client.quiet()
        client.reset()
        await eventually(lambda: house.broker.stats.connections == 0, "the end")
        house.broker.publish("a", b"4", qos=1)
        house.broker.publish("a", b"not for absent clients")
        client = await house.client(clean=False, answer=RESUMED)
        await client.expect(
            publish("a", b"1", qos=1, packet_id=1, dup=True)
            + publish("a", b"3", qos=1, packet_id=3, dup=True)
            + publish("a", b"4", qos=1, packet_id=4)
        )
        client.send(ack("puback", 1) + ack("puback", 3) + ack("puback", 4))
        await client.quiet()
        await client.leave()
        client = await house.client(clean=False, answer=RESUMED)
        await client.quiet()


async def test_qos_2_to_a_client() -> None:
    """[MQTT-4.3.3-1]: PUBLISH, PUBREC, PUBREL, PUBCOMP; after PUBREC only PUBREL is sent again. [MQTT-2.2.2-1]: the
    flags of PUBREL are 2."""
    async with running() as house:
        client = await house.client(clean=False)
        client.send(subscribe(("a", 2)))
        await client.expect(suback(2))
        house.broker.publish("a", b"once", qos=2)
        await client.expect(publish("a", b"once", qos=2))
        client.reset()
        await eventually(lambda: house.broker.stats.connections == 0, "the end")
        client = await house.client(clean=False, answer=RESUMED)
        await client.expect(publish("a", b"once", qos=2, dup=True))
        client.send(ack("pubrec"))
        await client.expect(ack("pubrel"))
        client.reset()
        await eventually(lambda: house.broker.stats.connections == 0, "the end")
        client = await house.client(clean=False, answer=RESUMED)
        await client.expect(ack("pubrel"))
        client.send(ack("pubcomp"))
        await client.quiet()
        assert not house.broker.clients.sessions["c"].inflight


async def test_qos_2_from_a_client() -> None:
    """[MQTT-4.3.3-2]: handed on once however often it is sent; the identifier is free after PUBCOMP."""
    async with running() as house:
        client = await house.client(clean=False)
        client.send(publish(TELEMETRY, b"1", qos=2) + publish(TELEMETRY, b"1", qos=2, dup=True))
        await client.expect(ack("pubrec") * 2)
        client.reset()
        await eventually(lambda: house.broker.stats.connections == 0, "the end")
        client = await house.client(clean=False, answer=RESUMED)
        client.send(publish(TELEMETRY, b"1", qos=2, dup=True))
        await client.expect(ack("pubrec"))
        client.send(ack("pubrel") + ack("pubrel"))
        await client.expect(ack("pubcomp") * 2)
        client.send(publish(TELEMETRY, b"2", qos=2))
        await client.expect(ack("pubrec"))
        client.send(ack("pubrel"))
        await client.expect(ack("pubcomp"))
        assert house.desk.payloads == [b"1", b"2"]


async def test_a_qos_2_message_sent_again_while_it_is_unsettled_is_not_acknowledged_before() -> None:
    """P1 over a broken line: the PUBREC waits for the receipt of the first sending."""
    async with running() as house:
        house.desk.settles = None
        client = await house.client(clean=False)
        client.send(publish(TELEMETRY, b"1", qos=2))
        await eventually(lambda: house.desk.messages, "the message")
        client.reset()
        await eventually(lambda: house.broker.stats.connections == 0, "the end")
        client = await house.client(clean=False, answer=RESUMED)
        client.send(publish(TELEMETRY, b"1", qos=2, dup=True))
        await client.quiet()
        house.desk.messages[0].receipt.settle(Outcome.COMMITTED)
        await client.expect(ack("pubrec"))
        assert house.desk.payloads == [b"1"]


async def test_a_qos_2_message_that_was_not_stored_may_come_again() -> None:
    """P1: after RETRY, the identifier does not make the message a repetition; even if the line broke before."""
    async with running() as house:
        house.desk.settles = None
        client = await house.client(clean=False)
        client.send(publish(TELEMETRY, b"1", qos=2))
        await eventually(lambda: house.desk.messages, "the message")
        client.reset()
        await eventually(lambda: house.broker.stats.connections == 0, "the end")
        house.desk.messages[0].receipt.settle(Outcome.RETRY)
        house.desk.settles = Outcome.COMMITTED
        client = await house.client(clean=False, answer=RESUMED)
        client.send(publish(TELEMETRY, b"1", qos=2, dup=True))
        await client.expect(ack("pubrec"))
        assert house.desk.payloads == [b"1", b"1"]


async def test_sessions() -> None:
    """Kept, and wiped by a clean one: [MQTT-3.1.2-4], [MQTT-3.1.2-5], [MQTT-3.1.2-6], [MQTT-3.1.4-3], [MQTT-3.1.3-2],
    [MQTT-3.2.2-1], [MQTT-3.2.2-2], [MQTT-3.2.2-3]."""
    async with running() as house:
        client = await house.client(clean=False)
        client.send(subscribe(("a", 1)))
        await client.expect(suback(1))
        await client.leave()
        assert house.broker.publish("a", b"waits", qos=1) == 0
        await (await house.client(clean=True, answer=ACCEPTED)).leave()
        client = await house.client(clean=False, answer=ACCEPTED)
        await client.quiet()
        assert house.broker.stats.subscriptions == 0


async def test_acknowledgements_leave_in_the_order_of_arrival() -> None:
    """[MQTT-4.6.0-2], [MQTT-4.6.0-3], P1; under the identifiers of the messages, [MQTT-2.3.1-6]."""
    async with running() as house:
        house.desk.settles = None
        client = await house.client()
        for n in range(1, 5):
            client.send(publish(TELEMETRY, qos=2 if n == 3 else 1, packet_id=n))
        client.send(publish("ordinary", qos=1, packet_id=5))
        await eventually(lambda: len(house.desk.messages) == 4, "the messages")
        for n in (3, 2, 1):
            house.desk.messages[n].receipt.settle(Outcome.COMMITTED)
        await client.quiet()
        house.desk.messages[0].receipt.settle(Outcome.COMMITTED)
        await client.expect(
            ack("puback", 1) + ack("puback", 2) + ack("pubrec", 3) + ack("puback", 4) + ack("puback", 5)
        )


async def test_a_message_that_is_not_stored_is_not_acknowledged() -> None:
    """P1, [MQTT-4.8.0-2]: the client keeps it, and sends it again when it has reconnected."""
    async with running() as house:
        house.desk.settles = None
        client = await house.client()
        client.send(publish(TELEMETRY, qos=1, packet_id=1) + publish(TELEMETRY, qos=1, packet_id=2))
        await eventually(lambda: len(house.desk.messages) == 2, "the messages")
        house.desk.messages[1].receipt.settle(Outcome.COMMITTED)
        house.desk.messages[0].receipt.settle(Outcome.RETRY)
        await client.closed()
        assert house.broker.stats.closed["not_stored"] == 1
