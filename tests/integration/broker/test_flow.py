"""Limits in both directions: who sends too much is read more slowly, who reads too slowly loses his connection."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from bridge.broker import packets
from bridge.broker.wire import WRITE_BUFFER
from bridge.receipts import Outcome
from tests.integration.broker.house import RecordingIntake, broker, publish
from tests.waiting import eventually

TELEMETRY = "devices/d1/telemetry"
BIG = bytes(100_000)


async def test_a_connection_is_not_read_while_too_much_of_it_is_unsettled() -> None:
    intake = RecordingIntake()
    intake.hold = True
    async with broker(intake, receive_window=10) as door:
        device = await door.client()
        other = await door.client("other")
        connection = next(c for c in door.broker.connections if c.client_id == "c")
        total = 100
        sending = asyncio.create_task(_send_slowly(device, total))
        await eventually(lambda: connection.held, "the device is paused")
        taken = len(intake.messages)
        assert taken == 10
        await other.silent()
        assert len(intake.messages) == taken
        for settled in range(total):
            await eventually(lambda wanted=settled + 1: len(intake.messages) >= wanted, "more messages")  # type: ignore[misc]  # mypy cannot infer it
            intake.messages[settled].receipt.settle(Outcome.COMMITTED)
        await sending
        await device.expect(*(packets.puback(i) for i in range(1, total + 1)))
        assert not connection.held


async def test_a_busy_connection_has_less_at_once_while_others_have_something_to_say() -> None:
    intake = RecordingIntake()
    intake.hold = True
    async with broker(intake) as door:
        busy, quiet = await door.client("busy"), await door.client("quiet")
        quiet.send(publish(TELEMETRY, b"quiet", 1, 1))
        await eventually(lambda: intake.messages, "the quiet one's message")
        even = door.broker.config.receive_window // 2
        busy.send(*(publish(TELEMETRY, b"%d" % i, 1, i) for i in range(1, even + 100)))
        connection = next(c for c in door.broker.connections if c.client_id == "busy")
        await eventually(lambda: connection.held, "the busy one is not read")
        assert len(intake.messages) == 1 + even
        for message in intake.messages:
            message.receipt.settle(Outcome.COMMITTED)
        await quiet.expect(packets.puback(1))
        await busy.expect(*(packets.puback(i) for i in range(1, even + 1)))
        await eventually(lambda: len(intake.messages) == even + 100, "the rest")
        for message in intake.messages[even + 1 :]:
            message.receipt.settle(Outcome.COMMITTED)
        await busy.expect(*(packets.puback(i) for i in range(even + 1, even + 100)))


async def test_a_share_that_has_become_smaller_than_what_is_under_way_holds_nobody_up_for_good() -> None:
    intake = RecordingIntake()
    intake.hold = True
    async with broker(intake, receive_window=1000) as door:
        busy = await door.client("busy")
        busy.send(b"".join(publish(TELEMETRY, b"%d" % i, 1, i) for i in range(1, 401)))
        await eventually(lambda: len(intake.messages) == 400, "the first messages")
        for name in "abcd":
            quiet = await door.client(name)
            quiet.send(publish(TELEMETRY, b"quiet", 1, 1))
        await eventually(lambda: len(intake.messages) == 404, "the others")
        assert door.broker.share.window < 400
        busy.send(b"".join(publish(TELEMETRY, b"%d" % i, 1, i) for i in range(401, 411)))
        connection = next(c for c in door.broker.connections if c.client_id == "busy")
        await eventually(lambda: connection.held, "the busy one is not read")
        assert len(intake.messages) == 405
        intake.hold = False
        for message in list(intake.messages):
            message.receipt.settle(Outcome.COMMITTED)
        await busy.expect(*(packets.puback(i) for i in range(1, 411)))


async def test_what_is_wrong_within_a_burst_concerns_nothing_before_it() -> None:
    intake = RecordingIntake()
    async with broker(intake) as door:
        device = await door.client()
        device.send(publish(TELEMETRY, b"0", 1, 9))
        await device.expect(packets.puback(9))
        good = [publish(TELEMETRY, b"%d" % i, 1, i) for i in (1, 2, 3)]
        unnumbered = publish(TELEMETRY, b"4", 1, 4).replace(b"\x00\x044", b"\x00\x004")
        device.send(b"".join((*good, unnumbered, good[0])))
        await device.expect(*(packets.puback(i) for i in (1, 2, 3)))
        await device.closed()
        assert intake.payloads() == [b"0", b"1", b"2", b"3"]
        assert door.ledger.difference == 0


async def test_a_burst_on_two_topics_of_every_kind_is_handed_over_in_order() -> None:
    intake = RecordingIntake()
    async with broker(intake) as door:
        device = await door.client()
        sent, acks = [], []
        for number in range(1, 61):
            topic = f"{TELEMETRY}/b" if number % 7 == 0 else "devices/d1/event/e" if number % 11 == 0 else TELEMETRY
            qos = 0 if number % 5 == 0 else 1
            sent.append(publish(topic, b"%d" % number, qos, number))
            acks += [packets.puback(number)] if qos else []
        device.send(b"".join(sent))
        await device.expect(*acks)
        assert intake.payloads() == [b"%d" % number for number in range(1, 61)]
        assert (door.ledger.received, door.ledger.in_flight) == (60, 0)


async def _send_slowly(client: Any, total: int) -> None:
    for i in range(1, total + 1):
        client.send(publish(TELEMETRY, b"%d" % i, 1, i))
        await client.writer.drain()
        await asyncio.sleep(0.001)  # so that it comes in pieces


async def test_nobody_who_has_delivered_is_read_while_the_intake_is_congested() -> None:
    intake = RecordingIntake()
    async with broker(intake) as door:
        first, second = await door.client("1"), await door.client("2")
        intake.congested = True
        first.send(publish(TELEMETRY, b"1", 1, 1))
        await first.expect(packets.puback(1))
        first.send(publish(TELEMETRY, b"2", 1, 2))
        second.send(publish(TELEMETRY, b"3", 1, 1))
        await second.expect(packets.puback(1))
        assert intake.payloads() == [b"1", b"3"]
        intake.relieve()
        await first.expect(packets.puback(2))


async def test_a_full_window_under_congestion_is_read_again() -> None:
    """Its receipts are settled before the intake says that it is relieved: that must not be the last it hears."""
    intake = RecordingIntake()
    intake.hold = True
    async with broker(intake, receive_window=3) as door:
        device = await door.client()
        device.send(*(publish(TELEMETRY, b"1", 1, i) for i in (1, 2, 3)))
        await eventually(lambda: len(intake.messages) == 3, "the messages")
        intake.congested = True
        for message in intake.messages:
            message.receipt.settle(Outcome.COMMITTED)
        await device.expect(*(packets.puback(i) for i in (1, 2, 3)))
        intake.relieve()
        await device.silent()


async def test_relief_does_not_restart_a_broker_that_stops() -> None:
    intake = RecordingIntake()
    async with broker(intake) as door:
        device = await door.client()
        intake.congested = True
        device.send(publish(TELEMETRY, b"1", 1, 1))
        await device.expect(packets.puback(1))
        await door.broker.stop_intake()
        intake.relieve()
        assert all(connection.held for connection in door.broker.connections)


async def test_qos_0_is_dropped_for_a_client_that_does_not_read() -> None:
    async with broker() as door:
        slow = await door.client("slow")
        await slow.subscribe("a", qos=0)
        for _ in range(200):
            door.broker.publish("a", BIG)
            await asyncio.sleep(0)
        dropped = door.broker.stats.dropped["slow_consumer"]
        assert dropped > 100
        # It is still there, and gets what comes when it has caught up.
        for _ in range(200 - dropped):
            await slow.expect(publish("a", BIG))
        await slow.silent()
        door.broker.publish("a", b"now")
        await slow.expect(publish("a", b"now"))


async def test_a_client_that_lets_too_much_wait_is_closed() -> None:
    async with broker(max_inflight=5, max_queued=10) as door:
        slow = await door.client("slow", will=("w", b"gone", 0, False))
        await slow.subscribe("a", qos=1)
        watcher = await door.client("watcher")
        await watcher.subscribe("w", qos=0)
        for i in range(16):
            door.broker.publish("a", b"%d" % i, qos=1)
        await watcher.expect(publish("w", b"gone"))
        assert door.broker.stats.closed == {"slow_consumer": 1}
        assert door.broker.stats.dropped == {"slow_consumer": 1}
        await slow.expect(*(publish("a", b"%d" % i, 1, i + 1) for i in range(5)))
        await slow.closed()


async def test_an_absent_session_keeps_what_it_has_room_for() -> None:
    async with broker(max_queued=3) as door:
        reader = await door.client("reader", clean=False)
        await reader.subscribe("a", qos=1)
        await reader.drop()
        await eventually(lambda: not door.broker.connections, "it is gone")
        for i in range(5):
            door.broker.publish("a", b"%d" % i, qos=1)
        assert door.broker.stats.dropped == {"queue_full": 2}
        reader = await door.client("reader", clean=False, present=True)
        await reader.expect(*(publish("a", b"%d" % i, 1, i + 1) for i in range(3)))
        await reader.silent()


async def test_what_waited_for_the_socket_is_sent_when_there_is_room() -> None:
    """More in one turn of the loop than may be gathered: a QoS 1 message behind it must not be forgotten."""
    async with broker() as door:
        reader = await door.client("reader")
        await reader.subscribe("a", qos=1)
        count = WRITE_BUFFER // len(BIG) + 2
        for _ in range(count):
            door.broker.publish("a", BIG, qos=0)
        door.broker.publish("a", b"last", qos=1)
        dropped = door.broker.stats.dropped["slow_consumer"]
        for _ in range(count - dropped):
            await reader.expect(publish("a", BIG))
        await reader.expect(publish("a", b"last", 1, 1))


async def test_another_clients_hand() -> None:
    """paho-mqtt, both ways at every quality of service, in order [MQTT-4.6.0-5], [MQTT-4.6.0-6]; it knows of no
    extension, [MQTT-7.0.0-2]."""
    async with broker() as door:
        received: list[tuple[str, bytes, int]] = []
        subscribed = threading.Event()
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="paho", clean_session=False)
        client.on_message = lambda _c, _u, m: received.append((m.topic, bytes(m.payload), m.qos))
        client.on_connect = lambda c, *_: c.subscribe([("a/#", 2), ("b", 0)])
        client.on_subscribe = lambda *_: subscribed.set()
        client.connect_async("127.0.0.1", door.broker.bound_port)
        client.loop_start()
        try:
            await eventually(subscribed.is_set, "the subscription")
            sent = [("a/x", b"%d" % i, i % 3) for i in range(60)]
            infos = [client.publish(topic, payload, qos) for topic, payload, qos in sent]
            await eventually(lambda: all(info.is_published() for info in infos), "all acknowledged")
            await eventually(lambda: len(received) == 60, "all received")
            assert sorted(received) == sorted(sent)
            for qos in range(3):
                numbers = [int(payload) for _, payload, q in received if q == qos]
                assert numbers == sorted(numbers), "in order [MQTT-4.6.0-6]"
            await eventually(lambda: not door.broker.clients.sessions["paho"].inflight, "nothing in flight")
            assert not door.broker.clients.sessions["paho"].inbound
        finally:
            client.disconnect()
            client.loop_stop()
