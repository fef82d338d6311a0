"""The two doors to the agents: Intake with its links, and Publish."""

from __future__ import annotations

import time

from bridge.receipts import Outcome
from tests.integration.broker.raw import (
    RESUMED,
    ack,
    publish,
    running,
    suback,
    subscribe,
)
from tests.waiting import eventually

TELEMETRY = "devices/d/telemetry"
REQUEST = "devices/d/command/request"


async def test_messages_reach_the_agents_and_other_subscribers() -> None:
    async with running() as house:
        operator = await house.client("operator")
        operator.send(subscribe(("devices/#", 1)))
        await operator.expect(suback(1))
        client = await house.client()
        client.send(publish(TELEMETRY, b"0") + publish(TELEMETRY, b"1", qos=1) + publish(TELEMETRY, b"2", qos=2))
        await client.expect(ack("puback") + ack("pubrec"))
        await operator.expect(
            publish(TELEMETRY, b"0") + publish(TELEMETRY, b"1", qos=1) + publish(TELEMETRY, b"2", qos=1, packet_id=2)
        )
        operator.send(subscribe((TELEMETRY, 0), packet_id=2))
        await operator.expect(suback(0, packet_id=2))
        client.send(publish(TELEMETRY, b"3"))
        await operator.expect(publish(TELEMETRY, b"3"))
        await operator.quiet()
        assert house.desk.payloads == [b"0", b"1", b"2", b"3"]
        assert house.desk.messages[0].address.device_id == "d"


async def test_a_connection_speaks_for_its_devices() -> None:
    async with running() as house:
        client = await house.client("gateway")
        client.send(publish("devices/a/telemetry") * 2 + publish("devices/b/pong") + publish("devices/c/command"))
        client.send(subscribe(("devices/a/command/request", 1), ("devices/e/ping", 0), ("devices/+/ping", 0)))
        await client.expect(suback(1, 0, 0))
        assert house.desk.links == [
            ("attached", "a", "gateway", False),
            ("attached", "b", "gateway", False),
            ("attached", "a", "gateway", True),
            ("attached", "e", "gateway", True),
        ]
        del house.desk.links[:]
        await client.leave()
        assert sorted(house.desk.links) == [("detached", d, "gateway", "disconnect") for d in "abe"]


async def test_why_a_device_is_detached() -> None:
    async with running() as house:
        causes: list[str] = []
        for cause in ("takeover", "error", "kicked", "error"):
            client = await house.client("same")
            client.send(publish(TELEMETRY))
            await eventually(lambda: house.desk.links, "the device")
            match cause, len(causes):
                case "takeover", _:
                    await house.client("same")
                case "kicked", _:
                    assert house.broker.kick("same")
                case _, 1:
                    client.reset()
                case _:
                    client.send(b"\x00\x00")
            await eventually(lambda: house.desk.links[-1][0] == "detached", "its end")
            causes.append(house.desk.links[-1][3])
            del house.desk.links[:]
        assert causes == ["takeover", "error", "kicked", "error"]
        assert not house.broker.kick("nobody")


async def test_listening_comes_after_the_suback() -> None:
    """What the agent sends when it hears that its device listens arrives behind the SUBACK."""
    async with running() as house:
        house.desk.on_listening = lambda: house.broker.publish(REQUEST, b"do", qos=1)
        client = await house.client(clean=False)
        client.send(subscribe((REQUEST, 1)))
        await client.expect(suback(1) + publish(REQUEST, b"do", qos=1))
        client.send(ack("puback"))
        await client.quiet()
        client.reset()
        await eventually(lambda: not house.broker.connections, "the end")
        # A kept session's device listens as soon as it is back.
        await (await house.client(clean=False, answer=RESUMED)).expect(publish(REQUEST, b"do", qos=1, packet_id=2))


async def test_publish_counts_those_who_named_the_topic() -> None:
    async with running() as house:
        acked: list[bool] = []
        device = await house.client("device")
        device.send(subscribe((REQUEST, 1)))
        await device.expect(suback(1))
        twin = await house.client("twin")
        twin.send(subscribe((REQUEST, 2)))
        await twin.expect(suback(2))
        watcher = await house.client("watcher")
        watcher.send(subscribe(("devices/#", 1)))
        await watcher.expect(suback(1))
        assert house.broker.publish(REQUEST, b"do", qos=1, on_ack=lambda: acked.append(True)) == 2
        for client in (watcher, device, twin):
            await client.expect(publish(REQUEST, b"do", qos=1))
        watcher.send(ack("puback"))
        await watcher.quiet()
        assert not acked
        for client in (device, twin):
            client.send(ack("puback"))
            await client.quiet()
        assert acked == [True]
        assert house.broker.publish("devices/other/ping", b"x") == 0


async def test_live_only_ends_with_the_connection() -> None:
    async with running() as house:
        client = await house.client(clean=False)
        client.send(subscribe((REQUEST, 1)))
        await client.expect(suback(1))
        assert house.broker.publish(REQUEST, b"live", qos=1, live_only=True) == 1
        assert house.broker.publish(REQUEST, b"kept", qos=1) == 1
        await client.expect(publish(REQUEST, b"live", qos=1) + publish(REQUEST, b"kept", qos=1, packet_id=2))
        client.reset()
        await eventually(lambda: not house.broker.connections, "the end")
        assert house.broker.publish(REQUEST, b"nobody", qos=1, live_only=True) == 0
        client = await house.client(clean=False, answer=RESUMED)
        await client.expect(publish(REQUEST, b"kept", qos=1, packet_id=2, dup=True))
        client.send(ack("puback", 2))
        await client.quiet()


async def test_nothing_is_delivered_after_its_deadline() -> None:
    now = [time.time()]
    async with running(clock=lambda: now[0], max_inflight=1) as house:
        client = await house.client(clean=False)
        client.send(subscribe((REQUEST, 1)))
        await client.expect(suback(1))
        for payload in (b"flying", b"waiting"):
            house.broker.publish(REQUEST, payload, qos=1, expires_at=now[0] + 10)
        house.broker.publish(REQUEST, b"later", qos=1, expires_at=now[0] + 100)
        await client.expect(publish(REQUEST, b"flying", qos=1))
        now[0] += 50
        client.send(ack("puback"))
        await client.expect(publish(REQUEST, b"later", qos=1, packet_id=2))
        client.reset()
        await eventually(lambda: not house.broker.connections, "the end")
        now[0] += 100
        client = await house.client(clean=False, answer=RESUMED)
        await client.quiet()
        assert house.broker.stats.dropped["expired"] == 2


async def test_what_no_agent_can_take_is_refused() -> None:
    """A dead letter is acknowledged, and is nobody else's either."""
    async with running() as house:
        client = await house.client()
        client.send(subscribe(("devices/#", 0)))
        await client.expect(suback(0))
        client.send(publish("devices/not ok/telemetry", qos=1) + publish("devices/d" + "/x" * 40, qos=2, packet_id=2))
        await client.expect(ack("puback", 1) + ack("pubrec", 2))
        await client.quiet()
        assert [reason for _, reason in house.desk.refused] == ["bad_device_id", "too_many_levels"]
        client.send(publish("ordinary" + "/x" * 40))
        await client.closed()
        assert house.broker.stats.closed["too_many_levels"] == 1


async def test_a_will_for_an_agent() -> None:
    async with running() as house:
        client = await house.client(will=("devices/d/event/power", b"lost", 1, False))
        client.reset()
        await eventually(lambda: house.desk.messages, "the will")
        assert house.desk.payloads == [b"lost"]


async def test_the_window() -> None:
    """At most `receive_window` messages of a connection are unsettled, and none is lost or out of order."""
    async with running(receive_window=10) as house:
        house.desk.settles = None
        client = await house.client()
        client.send(b"".join(publish(TELEMETRY, qos=1, packet_id=n) for n in range(1, 101)))
        settled = 0
        while settled < 100:
            await eventually(lambda settled=settled: len(house.desk.messages) > settled, "more")  # type: ignore[misc]  # mypy wants the default's type
            assert len(house.desk.messages) - settled <= 10
            for message in house.desk.messages[settled : settled + 5]:
                message.receipt.settle(Outcome.COMMITTED)
                settled += 1
        await client.expect(b"".join(ack("puback", n) for n in range(1, 101)))
        await client.quiet()


async def test_congestion() -> None:
    """While the intake is congested nothing is read from a connection that has just delivered; then all goes on."""
    async with running() as house:
        client = await house.client()
        house.desk.congested = True
        client.send(publish(TELEMETRY, b"1", qos=1))
        await client.expect(ack("puback"))
        client.send(publish(TELEMETRY, b"2", qos=1))
        other = await house.client("other")
        await other.reader.read(0)
        assert house.desk.payloads == [b"1"]
        house.desk.congested = False
        assert house.desk.on_relief is not None
        house.desk.on_relief()
        await client.expect(ack("puback"))
        await client.quiet()
        assert house.desk.payloads == [b"1", b"2"]


async def test_a_client_that_does_not_read_is_closed() -> None:
    """QoS 0 is dropped and counted; with QoS 1 it is closed at `max_queued`; the others do not notice."""
    async with running(max_queued=50, max_inflight=10) as house:
        slow = await house.client("slow")
        slow.send(subscribe(("big", 0), ("many", 1)))
        await slow.expect(suback(0, 1))
        other = await house.client("other")
        other.send(subscribe(("big", 0)))
        await other.expect(suback(0))
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]  # of the transports of sockets
        payload = b"x" * 100_000
        for _ in range(100):
            house.broker.publish("big", payload)
            await other.expect(publish("big", payload))
        assert house.broker.stats.dropped["slow_consumer"] > 0
        for _ in range(100):
            house.broker.publish("many", b"x", qos=1)
        await eventually(lambda: house.broker.stats.closed["slow_consumer"], "the end of the slow one")
        await eventually(lambda: len(house.broker.connections) == 1, "the socket to be gone")


async def test_an_absent_session_keeps_the_oldest() -> None:
    async with running(max_queued=3) as house:
        client = await house.client(clean=False)
        client.send(subscribe(("a", 1)))
        await client.expect(suback(1))
        await client.leave()
        for n in range(5):
            house.broker.publish("a", bytes((n,)), qos=1)
        assert house.broker.stats.dropped["queue_full"] == 2
        client = await house.client(clean=False, answer=RESUMED)
        await client.expect(b"".join(publish("a", bytes((n,)), qos=1, packet_id=n + 1) for n in range(3)))


async def test_retained_messages_beyond_the_queue_arrive() -> None:
    async with running(max_queued=10, max_inflight=5) as house:
        for n in range(100):
            house.broker.publish(f"r/{n}", b"x", qos=1, retain=True)
        client = await house.client()
        client.send(subscribe(("r/#", 1)))
        await client.expect(suback(1))
        for n in range(1, 101):
            await client.expect(publish(f"r/{n - 1}", b"x", qos=1, packet_id=n, retain=True))
            client.send(ack("puback", n))
        await client.quiet()


async def test_stopping_answers_what_was_taken() -> None:
    """SIGTERM: nothing new is read, what was settled in time is acknowledged, wills are not published."""
    async with running() as house:
        house.desk.settles = None
        client = await house.client(will=("will", b"x", 0, True))
        client.send(publish(TELEMETRY, qos=1))
        await eventually(lambda: house.desk.messages, "the message")
        await house.broker.stop_intake()
        client.send(publish(TELEMETRY, qos=1, packet_id=2))
        house.desk.messages[0].receipt.settle(Outcome.COMMITTED)
        await house.broker.stop(1.0)
        await client.closed(after=ack("puback"))
        assert len(house.desk.messages) == 1
        assert house.desk.links[-1][3] == "shutdown"
        assert house.broker.stats.retained == 0
