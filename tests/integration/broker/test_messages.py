"""Messages through the broker, at every quality of service, byte for byte."""

from __future__ import annotations

import asyncio

import pytest

from bridge.broker import packets
from bridge.receipts import Outcome
from tests.integration.broker.house import RecordingIntake, broker, publish, unsubscribe
from tests.waiting import eventually

TELEMETRY = "devices/d1/telemetry"


async def test_a_device_is_acknowledged_when_its_receipt_is_settled_and_not_before() -> None:
    intake = RecordingIntake()
    intake.hold = True
    async with broker(intake) as door:
        device = await door.client()
        device.send(publish(TELEMETRY, b"1", 1, 7))
        await eventually(lambda: intake.messages, "the message")
        await device.silent()
        intake.messages[0].receipt.settle(Outcome.COMMITTED)
        await device.expect(packets.puback(7))


async def test_acknowledgements_leave_in_the_order_of_arrival() -> None:
    """[MQTT-4.6.0-2], [MQTT-4.6.0-3]"""
    intake = RecordingIntake()
    intake.hold = True
    async with broker(intake) as door:
        device = await door.client()
        device.send(*(publish(TELEMETRY, b"%d" % i, 1 + i % 2, i) for i in range(1, 6)))
        await eventually(lambda: len(intake.messages) == 5, "all messages")
        for message in reversed(intake.messages[1:]):
            message.receipt.settle(Outcome.DEAD_LETTERED)
        await device.silent()
        intake.messages[0].receipt.settle(Outcome.COMMITTED)
        acks = (packets.puback(i) if i % 2 == 0 else packets.pubrec(i) for i in range(1, 6))
        await device.expect(*acks)


async def test_what_could_not_be_stored_stays_with_the_sender() -> None:
    intake = RecordingIntake()
    intake.hold = True
    async with broker(intake) as door:
        device = await door.client()
        device.send(publish(TELEMETRY, b"1", 1, 1), publish(TELEMETRY, b"2", 1, 2))
        await eventually(lambda: len(intake.messages) == 2, "both messages")
        intake.messages[1].receipt.settle(Outcome.COMMITTED)
        intake.messages[0].receipt.settle(Outcome.RETRY)
        assert await device.closed() == b""
        assert door.broker.stats.closed["not_stored"] == 1


async def test_qos_0_is_handed_over_and_counted() -> None:
    async with broker() as door:
        device = await door.client()
        device.send(publish(TELEMETRY, b"1"))
        await device.silent()
        assert door.intake.payloads() == [b"1"]
        assert (door.ledger.received, door.ledger.committed) == (1, 1)


async def test_qos_2_is_handed_over_once() -> None:
    """[MQTT-4.3.3-2]"""
    async with broker() as door:
        device = await door.client()
        device.send(publish(TELEMETRY, b"1", 2, 7))
        await device.expect(packets.pubrec(7))
        device.send(publish(TELEMETRY, b"1", 2, 7, dup=True))
        await device.expect(packets.pubrec(7))
        device.send(packets.pubrel(7))
        await device.expect(packets.pubcomp(7))
        assert door.intake.payloads() == [b"1"]
        device.send(publish(TELEMETRY, b"2", 2, 7))
        await device.expect(packets.pubrec(7))
        assert door.intake.payloads() == [b"1", b"2"]


async def test_qos_2_sent_again_on_a_new_connection_waits_for_the_first_receipt() -> None:
    """A PUBREC before the commit would lose the message if the commit failed."""
    intake = RecordingIntake()
    intake.hold = True
    async with broker(intake) as door:
        device = await door.client(clean=False)
        device.send(publish(TELEMETRY, b"1", 2, 7))
        await eventually(lambda: intake.messages, "the message")
        await device.drop()
        again = await door.client(clean=False, present=True)
        again.send(publish(TELEMETRY, b"1", 2, 7, dup=True))
        await again.silent()
        assert len(intake.messages) == 1
        assert intake.messages[0].receipt.once == ("c", 7)
        intake.messages[0].receipt.settle(Outcome.COMMITTED)
        await again.expect(packets.pubrec(7))


async def test_qos_2_that_was_not_stored_is_taken_when_it_comes_again() -> None:
    intake = RecordingIntake()
    intake.hold = True
    async with broker(intake) as door:
        device = await door.client(clean=False)
        device.send(publish(TELEMETRY, b"1", 2, 7))
        await eventually(lambda: intake.messages, "the message")
        intake.messages[0].receipt.settle(Outcome.RETRY)
        await device.closed()
        intake.hold = False
        again = await door.client(clean=False, present=True)
        again.send(publish(TELEMETRY, b"1", 2, 7, dup=True))
        await again.expect(packets.pubrec(7))
        assert len(intake.messages) == 2


@pytest.mark.parametrize("published", [0, 1, 2])
@pytest.mark.parametrize("subscribed", [0, 1, 2])
async def test_a_subscriber_gets_the_lower_of_the_two_qualities(published: int, subscribed: int) -> None:
    async with broker() as door:
        reader = await door.client("reader")
        await reader.subscribe("a/+", qos=subscribed)
        writer = await door.client("writer")
        writer.send(publish("a/b", b"hi", published, 9))
        if published == 1:
            await writer.expect(packets.puback(9))
        elif published == 2:
            await writer.expect(packets.pubrec(9))
            writer.send(packets.pubrel(9))
            await writer.expect(packets.pubcomp(9))
        qos = min(published, subscribed)
        await reader.expect(publish("a/b", b"hi", qos, 1))
        if qos == 1:
            reader.send(packets.puback(1))
        elif qos == 2:
            reader.send(packets.pubrec(1))
            await reader.expect(packets.pubrel(1))
            reader.send(packets.pubcomp(1))
        await reader.silent()
        session = door.broker.clients.sessions["reader"]
        assert not session.inflight


async def test_overlapping_subscriptions_get_one_copy_at_the_highest_quality() -> None:
    """[MQTT-3.3.5-1]"""
    async with broker() as door:
        reader = await door.client("reader")
        await reader.subscribe("a/#", qos=0)
        await reader.subscribe("a/b", qos=2)
        await reader.subscribe("+/b", qos=1)
        writer = await door.client("writer")
        writer.send(publish("a/b", b"hi", 2, 9))
        await reader.expect(publish("a/b", b"hi", 2, 1))
        await reader.silent()


async def test_an_operator_watches_what_devices_send() -> None:
    async with broker() as door:
        operator = await door.client("operator")
        await operator.subscribe("devices/#", qos=0)
        device = await door.client("device")
        device.send(publish(TELEMETRY, b"1", 1, 1))
        await device.expect(packets.puback(1))
        await operator.expect(publish(TELEMETRY, b"1"))
        assert door.intake.payloads() == [b"1"]


async def test_a_subscription_is_over_when_it_is_said_so() -> None:
    async with broker() as door:
        client = await door.client()
        await client.subscribe("a", "b")
        client.send(unsubscribe(5, "a", "never"))
        await client.expect(packets.unsuback(5))
        client.send(publish("a"), publish("b", b"seen"))
        await client.expect(publish("b", b"seen"))
        await client.silent()


async def test_retained_messages_follow_a_new_subscription() -> None:
    """[MQTT-3.3.1-6], [MQTT-3.3.1-8], [MQTT-3.3.1-10]"""
    async with broker() as door:
        writer = await door.client("writer")
        writer.send(publish("a/1", b"old", retain=True), publish("a/1", b"new", 1, 1, retain=True))
        writer.send(publish("a/2", b"gone", retain=True), publish("a/2", b"", retain=True))
        await writer.expect(packets.puback(1))
        await writer.silent()
        reader = await door.client("reader")
        await reader.subscribe("a/#", qos=1)
        await reader.expect(publish("a/1", b"new", 1, 1, retain=True))
        await reader.silent()
        # To a subscription that is there already it is an ordinary message [MQTT-3.3.1-9].
        writer.send(publish("a/1", b"live", retain=True))
        await reader.expect(publish("a/1", b"live"))


async def test_many_retained_messages_reach_a_client_that_acknowledges_them() -> None:
    """More than may be in flight or wait: nothing is lost and nobody is closed."""
    async with broker(max_inflight=10, max_queued=20) as door:
        for i in range(500):
            door.broker.publish(f"devices/d{i}/presence", b"%d" % i, qos=1, retain=True)
        reader = await door.client("reader")
        await reader.subscribe("devices/+/presence", qos=1)
        seen = set()
        for _ in range(500):
            head = await reader.reader.readexactly(2)
            body = await reader.reader.readexactly(head[1])
            size = 2 + int.from_bytes(body[:2], "big")
            seen.add(body[size + 2 :])
            reader.send(packets.puback(int.from_bytes(body[size : size + 2], "big")))
        assert seen == {b"%d" % i for i in range(500)}
        await reader.silent()


async def test_many_retained_messages_reach_a_client_that_needs_no_acknowledging() -> None:
    async with broker() as door:
        for i in range(3_000):
            door.broker.publish(f"a/{i}", bytes(1000), retain=True)
        reader = await door.client("reader")
        await reader.subscribe("#", qos=0)
        total = sum(len(publish(f"a/{i}", bytes(1000), retain=True)) for i in range(3_000))
        async with asyncio.timeout(5):
            await reader.reader.readexactly(total)
        await reader.silent()
        assert not door.broker.stats.dropped


async def test_messages_wait_for_a_kept_session_and_come_in_order() -> None:
    async with broker(max_inflight=3) as door:
        reader = await door.client("reader", clean=False)
        await reader.subscribe("a", qos=1)
        await reader.drop()
        await eventually(lambda: door.broker.stats.connections == 0, "the reader is gone")
        writer = await door.client("writer")
        for i in range(1, 6):
            writer.send(publish("a", b"%d" % i, 1, i))
            await writer.expect(packets.puback(i))
        reader = await door.client("reader", clean=False, present=True)
        await reader.expect(*(publish("a", b"%d" % i, 1, i) for i in (1, 2, 3)))
        reader.send(packets.puback(1))
        await reader.expect(publish("a", b"4", 1, 4))
        await reader.drop()
        await eventually(lambda: door.broker.stats.connections == 1, "the reader is gone")
        # What was in flight comes again, marked, with its identifier; the rest follows [MQTT-4.4.0-1].
        reader = await door.client("reader", clean=False, present=True)
        await reader.expect(*(publish("a", b"%d" % i, 1, i, dup=True) for i in (2, 3, 4)))
        reader.send(packets.puback(3))
        await reader.expect(publish("a", b"5", 1, 5))


async def test_a_released_qos_2_message_is_not_sent_again() -> None:
    async with broker() as door:
        reader = await door.client("reader", clean=False)
        await reader.subscribe("a", qos=2)
        writer = await door.client("writer")
        writer.send(publish("a", b"1", 2, 1))
        await reader.expect(publish("a", b"1", 2, 1))
        reader.send(packets.pubrec(1))
        await reader.expect(packets.pubrel(1))
        await reader.drop()
        await eventually(lambda: door.broker.stats.connections == 1, "the reader is gone")
        reader = await door.client("reader", clean=False, present=True)
        await reader.expect(packets.pubrel(1))
        reader.send(packets.pubcomp(1))
        await reader.silent()
        assert not door.broker.clients.sessions["reader"].inflight


async def test_what_the_bridge_sends_says_whom_it_reached() -> None:
    async with broker() as door:
        acked = []
        topic = "devices/d1/command/request"
        assert door.broker.publish(topic, b"1", qos=1, live_only=True) == 0
        operator = await door.client("operator")
        await operator.subscribe("devices/#", qos=1)
        assert door.broker.publish(topic, b"2", qos=1, live_only=True, on_ack=lambda: acked.append("operator")) == 0
        await operator.expect(publish(topic, b"2", 1, 1))
        operator.send(packets.puback(1))
        await operator.silent()
        assert acked == []
        device = await door.client("device")
        await device.subscribe(topic, qos=1)
        assert door.broker.publish(topic, b"3", qos=1, live_only=True, on_ack=lambda: acked.append("device")) == 1
        await device.expect(publish(topic, b"3", 1, 1))
        device.send(packets.puback(1))
        await device.silent()
        assert acked == ["device"]


async def test_what_has_expired_is_not_delivered_again() -> None:
    async with broker() as door:
        topic = "devices/d1/command/request"
        device = await door.client("device", clean=False)
        await device.subscribe(topic, qos=1)
        door.broker.publish(topic, b"late", qos=1, live_only=True, expires_at=door.broker.clock() + 0.05)
        await device.expect(publish(topic, b"late", 1, 1))
        await device.drop()
        await eventually(lambda: door.broker.stats.connections == 0, "the device is gone")
        deadline = door.broker.clock() + 0.05
        await eventually(lambda: door.broker.clock() > deadline, "the message's time is over")
        device = await door.client("device", clean=False, present=True)
        await device.silent()
        assert not door.broker.clients.sessions["device"].inflight


async def test_a_connection_speaks_for_the_devices_it_names() -> None:
    async with broker() as door:
        client = await door.client()
        client.send(publish(TELEMETRY), publish(TELEMETRY), publish("devices/d1/pong"), publish("devices/d2/command"))
        await client.silent()
        assert door.intake.attachments == [("d1", False)]
        await client.subscribe("devices/d3/ping", "devices/+/ping", "devices/d3/presence")
        await client.silent()
        assert door.intake.attachments == [("d1", False), ("d3", True)]
        client.send(b"\xe0\x00")
        await client.closed()
        assert sorted(door.intake.detachments) == [("d1", "disconnect"), ("d3", "disconnect")]
