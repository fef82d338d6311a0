"""Agents on a real database: readings, state, commands, presence, failures."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from sqlalchemy import func, select

from bridge.agents.cell import BUDGET
from bridge.agents.services import Rules
from bridge.commands import CommandRequest, CommandStatus
from bridge.messages import Message
from bridge.receipts import Outcome
from bridge.storage import commands as stored
from bridge.storage import tables
from tests.integration.agents.house import House, Line, house
from tests.waiting import eventually


async def count(built: House, table: Any) -> int:
    async def rows(connection: Any) -> int:
        return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())

    return await built.database.read(rows)


async def test_a_reading_is_committed_before_its_receipt_is_settled(url: str) -> None:
    async with house(url) as built:
        receipt = built.receive("devices/fridge-7/telemetry", b'{"temperature": 4.2}')
        assert receipt.outcome is None
        await eventually(lambda: receipt.outcome)
        assert receipt.outcome is Outcome.COMMITTED
        assert await count(built, tables.telemetry) == 1
        device = built.router.find("fridge-7")
        assert device is not None
        assert device.messages == 1
        assert device.streams["default"].payload == '{"temperature": 4.2}'


async def test_a_thousand_messages_for_a_cold_device_load_its_state_once(url: str) -> None:
    async with house(url) as built:
        loads = 0
        load = built.services.loader.load

        async def counted(key: str) -> Any:
            nonlocal loads
            loads += 1
            return await load(key)

        built.services.loader.load = counted  # type: ignore[method-assign]  # counts, then does the real thing
        receipts = [built.receive("devices/d1/telemetry", b'{"n": %d}' % n) for n in range(1000)]
        await eventually(lambda: all(receipt.outcome for receipt in receipts))
        assert loads == 1
        assert await count(built, tables.telemetry) == 1000


async def test_state_survives_a_restart_and_late_readings_do_not_replace_the_latest(url: str) -> None:
    async with house(url) as built:
        for payload in (b'{"ts": 1700000100, "v": 2}', b'{"ts": 1700000000, "v": 1}', b'[{"v":3},{"v":4}]'):
            receipt = built.receive("devices/d1/telemetry/a", payload)
        await eventually(lambda: receipt.outcome)
        device = built.router.find("d1")
        assert device is not None
        first_seen = device.first_seen
    async with house(url) as built:
        receipt = built.receive("devices/d1/telemetry/b", b'{"w": 1}')
        await eventually(lambda: receipt.outcome)
        device = built.router.find("d1")
        assert device is not None
        assert (device.messages, device.first_seen) == (4, first_seen)
        assert device.streams["a"].payload == '{"v":3}'


async def test_a_silent_device_leaves_memory_and_comes_back_with_its_state(url: str) -> None:
    rules = Rules(sleep_after=0.05, evict_after=0.1, snapshot_interval=0.05)
    async with house(url, rules) as built:
        receipt = built.receive("devices/d1/telemetry", b'{"v": 1}')
        await eventually(lambda: built.router.find("d1") is not None)
        await eventually(lambda: built.router.find("d1") is None)
        await eventually(lambda: built.router.activity() == {"awake": 0, "asleep": 0, "cold": 1})
        receipt = built.receive("devices/d1/telemetry", b'{"v": 2}')
        await eventually(lambda: receipt.outcome)
        device = built.router.find("d1")
        assert device is not None
        assert device.messages == 2


async def test_a_sleeping_agent_wakes_for_a_message(url: str) -> None:
    async with house(url, Rules(sleep_after=0.05, snapshot_interval=0.05)) as built:
        built.receive("devices/d1/telemetry", b'{"v": 1}')
        await eventually(lambda: built.router.activity() == {"awake": 0, "asleep": 1, "cold": 0})
        receipt = built.receive("devices/d1/telemetry", b'{"v": 2}')
        await eventually(lambda: receipt.outcome)
        device = built.router.find("d1")
        assert device is not None
        assert device.messages == 2


async def test_a_sleeping_agent_is_made_again_without_asking_the_database(url: str) -> None:
    async with house(url, Rules(sleep_after=0.05, evict_after=60.0, snapshot_interval=0.05)) as built:
        first = built.receive("devices/d1/telemetry/a", b'{"v": 1}')
        await eventually(lambda: first.outcome and len(built.router.sleepers) == 1)
        queries = built.services.loader.queries
        second = built.receive("devices/d1/telemetry/b", b'{"v": 2}')
        device = built.router.find("d1")
        assert device is not None
        assert (device.messages, json.loads(device.streams["a"].payload)) == (1, {"v": 1})
        await eventually(lambda: second.outcome)
        assert device.messages == 2
        assert built.services.loader.queries == queries


async def test_a_device_does_not_sleep_while_a_command_for_it_is_being_stored(url: str) -> None:
    """Else the command would be nobody's once it is stored."""
    async with house(url, Rules(sleep_after=0.05, evict_after=0.05, snapshot_interval=0.05)) as built:
        receipt = built.receive("devices/d1/telemetry", b'{"v": 1}')
        await eventually(lambda: receipt.outcome)
        async with built.database.transaction():
            sent = asyncio.create_task(built.router.send("d1", CommandRequest("reboot"), "api"))
            await asyncio.sleep(0.6)  # several times as long as a device stays awake
            assert not sent.done()
        command, created = await sent
        assert created
        device = built.router.find("d1")
        assert device is not None
        assert device.book.open == {command.command_id: command}


async def test_one_agent_with_much_to_do_lets_the_others_go_first(url: str) -> None:
    """After so many messages in a row it is the others' turn."""
    async with house(url) as built:
        warm = [built.receive(f"devices/{name}/telemetry", b"{}") for name in ("busy", "other")]
        await eventually(lambda: all(receipt.outcome for receipt in warm))
        busy, other = built.router.find("busy"), built.router.find("other")
        assert busy is not None
        assert other is not None
        for _ in range(5_000):
            built.receive("devices/busy/telemetry", b"{}")
        built.receive("devices/other/telemetry", b"{}")
        control: list[int] = []
        built.router.cell("busy").tell(lambda device: control.append(device.messages))
        for _ in range(1_000):
            if other.messages == 2:
                break
            await asyncio.sleep(0)
        assert other.messages == 2
        assert busy.messages <= 1 + 2 * BUDGET
        assert control == [1]  # control goes before data
        await eventually(lambda: built.ledger.in_flight == 0)


async def test_rubbish_becomes_a_dead_letter_the_device_is_told_and_the_next_reading_is_stored(url: str) -> None:
    async with house(url) as built:
        bad = built.receive("devices/d1/telemetry", b"{nope")
        good = built.receive("devices/d1/telemetry", b'{"v": 1}')
        await eventually(lambda: bad.outcome and good.outcome)
        assert (bad.outcome, good.outcome) == (Outcome.DEAD_LETTERED, Outcome.COMMITTED)
        assert await count(built, tables.dead_letters) == 1
        assert [body["reason"] for body in built.bodies("devices/d1/error")] == ["not_json"]


async def test_a_burst_of_everything_is_handled_in_order(url: str) -> None:
    """What is alike is handled together, up to what is not: nothing is left out, and nothing is done twice."""
    async with house(url) as built:
        sent = [
            ("telemetry", b'{"n": 0}'),
            ("telemetry/other", b'{"n": 1, "id": "x"}'),
            ("telemetry", b'[{"n": 2}, {"n": 3}]'),
            ("telemetry", b'{"n": 4'),
            ("telemetry", b'{"n": 5}'),
            ("event/door", b'{"open": true}'),
            ("telemetry/other", b'{"n": 1, "id": "x"}'),
            ("telemetry", b'{"n": 6}'),
        ]
        messages, receipts = [], []
        for kind, payload in sent:
            address = built.topics.parse(f"devices/d1/{kind}")
            assert address is not None
            receipts.append(built.ledger.receipt(qos=1))
            messages.append(Message(address, payload, built.clock(), receipts[-1]))
        built.router.deliver(messages)
        await eventually(lambda: all(receipt.outcome for receipt in receipts))
        dead = [number for number, receipt in enumerate(receipts) if receipt.outcome is Outcome.DEAD_LETTERED]
        assert dead == [3]
        assert await count(built, tables.telemetry) == 7

        async def payloads(connection: Any) -> list[str]:
            return list((await connection.execute(select(tables.telemetry.c.payload).order_by("id"))).scalars())

        assert await built.database.read(payloads) == [
            '{"n": 0}', '{"n": 1, "id": "x"}', '{"n": 2}', '{"n": 3}', '{"n": 5}', '{"open": true}', '{"n": 6}',
        ]  # fmt: skip
        device = built.router.find("d1")
        assert device is not None
        assert device.messages == 7
        assert {stream: latest.payload for stream, latest in device.streams.items()} == {
            "default": '{"n": 6}', "other": '{"n": 1, "id": "x"}', "event/door": '{"open": true}',
        }  # fmt: skip
        assert built.ledger.difference == 0


async def test_qos_0_over_the_mailbox_limit_is_dropped_and_counted(url: str) -> None:
    async with house(url, Rules(mailbox_limit=10)) as built:
        receipts = [built.receive("devices/d1/telemetry", b"{}", qos=0) for _ in range(15)]
        kept = built.receive("devices/d1/telemetry", b"{}", qos=1)
        await eventually(lambda: kept.outcome)
        assert [receipt.outcome for receipt in receipts].count(Outcome.DROPPED) == 5
        assert built.ledger.dropped == {"mailbox_full": 5}


async def test_a_timer_whose_time_has_come_is_not_put_off_by_a_later_one(url: str) -> None:
    """The wheel turns four times a second: what is asked for in between must not replace what is due."""
    async with house(url, Rules(snapshot_interval=60.0)) as built:
        receipt = built.receive("devices/d1/telemetry", b"{}")
        await eventually(lambda: receipt.outcome)
        cell = built.router.cell("d1")
        cell.call_before(built.clock() - 1.0)
        due = cell._next_tick
        cell.call_before(built.clock() + 30.0)
        assert cell._next_tick == due
        await eventually(lambda: cell._next_tick > built.services.wheel.now(), timeout=2.0)


async def statuses(built: House, command_id: str) -> list[str]:
    events = await built.database.read(lambda connection: stored.command_events(connection, command_id, 0))
    return [event.status for event in events]


async def test_a_command_is_stored_sent_delivered_and_done(url: str) -> None:
    async with house(url) as built:
        built.router.attached("d1", Line(), listening=True)
        command, created = await built.router.send("d1", CommandRequest("reboot", {"delay": 1}), "api")
        assert created
        await eventually(lambda: built.bodies("devices/d1/command/request"))
        request = next(sent for sent in built.sent if sent.topic == "devices/d1/command/request")
        assert request.body == {
            "id": command.command_id, "name": "reboot", "args": {"delay": 1}, "expires_at": command.expires_at,
        }  # fmt: skip
        assert request.on_ack is not None
        request.on_ack()
        answer = b'{"id":"%s","status":"%s","result":{"ok":true}}'
        for status in (b"in_progress", b"succeeded", b"failed"):
            receipt = built.receive("devices/d1/command/response", answer % (command.command_id.encode(), status))
            await eventually(lambda receipt=receipt: receipt.outcome)  # type: ignore[misc]  # mypy cannot infer the default's type
            assert receipt.outcome is Outcome.COMMITTED
        found = await built.database.read(lambda connection: stored.get_command(connection, command.command_id))
        assert found is not None
        assert (found.status, found.result) == (CommandStatus.SUCCEEDED, {"ok": True})
        told = [body["status"] for body in built.bodies("devices/d1/command/status")]
        assert told == ["queued", "sent", "delivered", "in_progress", "succeeded"]
        # The late answer is on record and has changed nothing.
        assert (await statuses(built, command.command_id))[:5] == told
        assert len(await statuses(built, command.command_id)) == 6


async def test_the_same_key_is_the_same_command(url: str) -> None:
    async with house(url) as built:
        request = CommandRequest("open", id="k1")
        (first, created), (second, again) = await asyncio.gather(
            built.router.send("d1", request, "api"), built.router.send("d1", request, "api")
        )
        assert (created, again) == (True, False)
        assert first.command_id == second.command_id
        built.router.attached("d1", Line(), listening=True)
        await eventually(lambda: built.bodies("devices/d1/command/request"))
        assert len(built.bodies("devices/d1/command/request")) == 1


async def test_commands_for_an_absent_device_go_out_in_order_when_it_comes_unless_expired(url: str) -> None:
    async with house(url) as built:
        for name, ttl in (("first", 60.0), ("too-late", 0.05), ("second", 60.0)):
            await built.router.send("d1", CommandRequest(name, ttl=ttl), "api")
        await eventually(lambda: any(b["status"] == "expired" for b in built.bodies("devices/d1/command/status")))
        assert built.bodies("devices/d1/command/request") == []
        built.router.attached("d1", Line(), listening=True)
        await eventually(lambda: len(built.bodies("devices/d1/command/request")) == 2)
        assert [body["name"] for body in built.bodies("devices/d1/command/request")] == ["first", "second"]


async def test_unfinished_commands_survive_a_restart(url: str) -> None:
    async with house(url) as built:
        waiting, _ = await built.router.send("d1", CommandRequest("waits"), "api")
        short, _ = await built.router.send("d2", CommandRequest("short", ttl=0.3), "api")
    async with house(url) as built:
        built.router.attached("d1", Line(), listening=True)
        await eventually(lambda: built.bodies("devices/d1/command/request"))
        assert built.bodies("devices/d1/command/request")[0]["id"] == waiting.command_id
        await eventually(lambda: built.bodies("devices/d2/command/status"))
        assert built.bodies("devices/d2/command/status")[0]["status"] == "expired"
        assert await statuses(built, short.command_id) == ["queued", "expired"]


async def test_a_response_to_a_command_that_was_never_sent_is_refused(url: str) -> None:
    async with house(url) as built:
        receipt = built.receive("devices/d1/command/response", b'{"id":"nope","status":"succeeded"}')
        await eventually(lambda: receipt.outcome)
        assert receipt.outcome is Outcome.DEAD_LETTERED
        assert [body["reason"] for body in built.bodies("devices/d1/error")] == ["unknown_command"]


async def test_a_command_over_mqtt_is_acknowledged_after_it_is_stored(url: str) -> None:
    async with house(url) as built:
        receipt = built.receive("devices/d1/command", b'{"name":"reboot","id":"k1"}')
        await eventually(lambda: receipt.outcome)
        assert receipt.outcome is Outcome.COMMITTED
        assert await count(built, tables.commands) == 1
        refused = built.receive("devices/d1/command", b'{"nome":"reboot"}')
        await eventually(lambda: refused.outcome)
        assert refused.outcome is Outcome.DEAD_LETTERED
