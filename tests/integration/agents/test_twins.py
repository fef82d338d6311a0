"""Twins on a real database: patches, versions, deltas, history, and what a device hears when it comes back."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from sqlalchemy import func, select

from bridge.agents.services import Rules
from bridge.errors import RefusedError, VersionConflictError
from bridge.messages import Address, Message
from bridge.receipts import Outcome, Receipt
from bridge.storage import tables, twins
from bridge.storage.retention import DAY, Keep, Retention
from bridge.twin import Limits, Part, Patch, Twin, merge
from tests.integration.agents.house import House, Line, house
from tests.waiting import eventually

DESIRED, REPORTED = "devices/d1/state/desired", "devices/d1/state/reported"
STATE, DELTA, REJECTED = "devices/d1/state", "devices/d1/state/delta", "devices/d1/state/rejected"


async def send(built: House, topic: str, body: Any) -> Receipt:
    """A patch comes in and is settled, and what follows from it is published."""
    receipt = built.receive(topic, msgspec.json.encode(body))
    await eventually(lambda: receipt.outcome)
    await eventually(lambda: built.router.cell("d1").idle)
    return receipt


async def stored(built: House, device_id: str = "d1") -> Twin | None:
    return await built.database.read(lambda connection: twins.get(connection, device_id))


async def test_desired_reported_and_what_lies_between(url: str) -> None:
    async with house(url) as built:
        receipt = await send(built, DESIRED, {"interval": 60, "led": {"on": True}})
        assert receipt.outcome is Outcome.COMMITTED
        assert built.bodies(DELTA) == [{"version": 1, "delta": {"interval": 60, "led": {"on": True}}}]
        await send(built, REPORTED, {"interval": 60, "firmware": "1.2"})
        await send(built, REPORTED, {"firmware": "1.3"})  # changes nothing that is asked for: no news
        await send(built, REPORTED, {"led": {"on": True}})  # done: there is nothing to send any more
        await send(built, DESIRED, {"interval": None, "led": {"on": False}})
        assert built.bodies(DELTA)[1:] == [
            {"version": 1, "delta": {"led": {"on": True}}},
            {"version": 2, "delta": {"led": {"on": False}}},
        ]
        whole = built.bodies(STATE)[-1]
        assert (whole["desired"], whole["reported"]) == (
            {"led": {"on": False}}, {"interval": 60, "firmware": "1.3", "led": {"on": True}},
        )  # fmt: skip
        assert (whole["desired_version"], whole["reported_version"]) == (2, 3)
        assert whole["desired_at"] == pytest.approx(built.clock(), abs=60)
        assert all(sent.retain for sent in built.sent if sent.topic == STATE)
        assert len(built.bodies(STATE)) == 5
        found = await stored(built)
        assert found is not None
        assert msgspec.to_builtins(found) == whole
        assert built.services.census.twins == {"desired": 2, "reported": 3}


async def test_patches_of_one_batch_apply_in_order(url: str) -> None:
    async with house(url) as built:
        receipts = [built.receive(DESIRED, b'{"n": %d, "version": %d}' % (n, n)) for n in range(50)]
        await eventually(lambda: all(receipt.outcome for receipt in receipts))
        assert {receipt.outcome for receipt in receipts} == {Outcome.COMMITTED}
        await eventually(lambda: len(built.bodies(STATE)) == 50)
        assert [body["desired"]["n"] for body in built.bodies(STATE)] == [*range(50)]
        assert [body["version"] for body in built.bodies(DELTA)] == [*range(1, 51)]
        assert not built.bodies(REJECTED)


async def test_a_conflict_is_answered_with_the_present_version_and_changes_nothing(url: str) -> None:
    async with house(url) as built:
        await send(built, DESIRED, {"a": 1})
        receipt = await send(built, DESIRED, {"a": 2, "version": 0})
        assert receipt.outcome is Outcome.COMMITTED
        (answer,) = built.bodies(REJECTED)
        assert (answer["reason"], answer["expected"], answer["version"]) == ("version_conflict", 0, 1)
        assert (await stored(built)) == Twin({"a": 1}, 1, built.bodies(STATE)[0]["desired_at"])
        # The same message again (its PUBACK was lost) is no conflict with itself.
        again = await send(built, DESIRED, {"a": 1, "version": 0})
        assert again.outcome is Outcome.COMMITTED
        assert len(built.bodies(REJECTED)) == len(built.bodies(STATE)) == 1
        assert await letters(built) == 0


async def letters(built: House) -> int:
    await built.writer.barrier()
    query = select(func.count()).select_from(tables.dead_letters)

    async def count(connection: Any) -> int:
        return int((await connection.execute(query)).scalar_one())

    return await built.database.read(count)


async def test_what_is_too_large_too_deep_or_no_patch_is_a_dead_letter(url: str) -> None:
    async with house(url, Rules(twin_limits=Limits(max_bytes=100, max_depth=3))) as built:
        await send(built, REPORTED, {"a": "x" * 60})
        for topic, payload in (
            (REPORTED, b'{"b": "%s"}' % (b"x" * 60)),
            (REPORTED, b"[]"),
            (DESIRED, b'{"a": {"b": {"c": {}}}}'),
            (DESIRED, b'{"version": "one"}'),
        ):
            receipt = built.receive(topic, payload)
            await eventually(lambda receipt=receipt: receipt.outcome)  # type: ignore[misc]  # bound here
            assert receipt.outcome is Outcome.DEAD_LETTERED
        assert await letters(built) == 4
        assert [body["reason"] for body in built.bodies("devices/d1/error")] == ["twin_too_large", "bad_patch"]
        assert [body["reason"] for body in built.bodies(REJECTED)] == ["twin_too_deep", "bad_version"]
        found = await stored(built)
        assert found is not None
        assert found.reported == {"a": "x" * 60}


async def test_a_device_that_comes_back_hears_what_it_has_to_do_once(url: str) -> None:
    async with house(url) as built:
        await send(built, DESIRED, {"a": 1})
        await send(built, "devices/d2/state/reported", {"free": True})
    async with house(url) as built:
        line = Line()
        built.router.attached("d1", line, listening=True)
        built.router.attached("d1", line, listening=True)  # by a second topic
        built.router.attached("d2", Line(), listening=True)
        await eventually(lambda: built.bodies(DELTA))
        await eventually(lambda: built.router.cell("d1").idle)
        built.router.attached("d1", line, listening=True)
        await eventually(lambda: built.router.cell("d1").idle)
        assert built.bodies(DELTA) == [{"version": 1, "delta": {"a": 1}}]
        built.router.detached("d1", line, "error")
        built.router.attached("d1", Line(), listening=True)
        await eventually(lambda: len(built.bodies(DELTA)) == 2)
        await send(built, REPORTED, {"a": 1})
        built.router.attached("d1", Line(), listening=True)
        await eventually(lambda: built.router.cell("d1").idle)
        assert len(built.bodies(DELTA)) == 2
        assert not built.bodies("devices/d2/state/delta")
        # A device without a twin is not asked for: only those that have one are read.
        assert built.services.twins.queries <= 3


async def test_a_device_that_knows_a_version_gets_exactly_what_it_misses(url: str) -> None:
    async with house(url) as built:
        known: dict[int, Any] = {0: {}}
        desired: dict[str, Any] = {}
        for version, patch in enumerate(
            ({"a": 1, "b": {"c": 2, "d": 3}}, {"a": None, "b": 5}, {"b": {"d": 3}}, {"list": [None, {"x": None}]}), 1
        ):
            await send(built, DESIRED, patch)
            desired = merge(desired, patch)
            known[version] = desired
        for version, document in known.items():
            before = len(built.bodies(DELTA))
            await send(built, REPORTED, {"version": version})
            news = built.bodies(DELTA)[before:]
            if version == 4:
                assert news == []
                continue
            (body,) = news
            assert (body["version"], body["since"]) == (4, version)
            assert merge(document, body["delta"]) == desired
        assert built.bodies(DELTA)[-1]["delta"] == {"list": [None, {"x": None}]}
        found = await stored(built)
        assert found is not None
        assert (found.reported, found.reported_version) == ({}, 0), "to ask is no report"
        # A version that there never was: all of it.
        await send(built, REPORTED, {"version": 99, "seen": True})
        assert built.bodies(DELTA)[-1] == {"version": 4, "since": 0, "delta": desired}


async def test_when_the_history_is_pruned_a_device_gets_all_of_it(url: str) -> None:
    async with house(url) as built:
        for n in range(5):
            await send(built, DESIRED, {"n": n, str(n): n})
        steps = await built.database.read(lambda connection: twins.history(connection, "d1", Part.DESIRED, 10))
        assert [step.version for step in steps] == [5, 4, 3, 2, 1]
        assert (steps[0].patch, steps[0].undo) == ({"n": 4, "4": 4}, {"n": 3, "4": None})
        retention = Retention(built.database, Keep(twins=1.0), lambda: steps[2].at + DAY)
        await retention.sweep()
        assert retention.deleted["twin_history"] == 2
        await send(built, REPORTED, {"version": 2})
        assert built.bodies(DELTA)[-1]["since"] == 2
        await send(built, REPORTED, {"version": 1})
        found = await stored(built)
        assert found is not None
        assert built.bodies(DELTA)[-1] == {"version": 5, "since": 0, "delta": found.desired}


async def test_an_operator_is_answered_after_the_commit(url: str) -> None:
    async with house(url) as built:

        async def desire(patch: Patch) -> Twin:
            return await built.router.desire("d1", patch)

        twin = await desire(Patch({"a": 1}))
        assert twin == await stored(built)
        with pytest.raises(VersionConflictError):
            await desire(Patch({"a": 2}, 7))
        with pytest.raises(RefusedError, match="bytes"):
            await desire(Patch({"a": "x" * 40_000}))
        built.router.attached("d1", Line(), listening=True)
        assert (await desire(Patch({"b": 2}, 1))).desired_version == 2
        # The device is known now, although it has never said a word.
        assert await built.services.loader.load("d1") is not None


async def test_a_qos_2_patch_is_known_as_taken_in_the_same_transaction(url: str) -> None:
    async with house(url) as built:
        address = built.topics.parse(DESIRED)
        assert address is not None
        receipt = built.ledger.receipt(qos=2, packet_id=7, once=("operator", 7))
        built.router.deliver([_message(address, b'{"a": 1}', receipt)])
        await eventually(lambda: receipt.outcome)
        rows = await built.database.read(_taken)
        assert rows == [("operator", 7)]


def _message(address: Address, payload: bytes, receipt: Receipt) -> Message:
    return Message(address, payload, time.time(), receipt)


async def _taken(connection: Any) -> list[Any]:
    return [tuple(row) for row in await connection.execute(select(tables.inbound_once))]


async def test_a_device_without_a_twin_costs_nothing(url: str) -> None:
    async with house(url) as built:
        receipt = built.receive("devices/d9/telemetry", b'{"t": 1}')
        built.router.attached("d9", Line(), listening=True)
        await eventually(lambda: receipt.outcome)
        device = built.router.find("d9")
        assert device is not None
        assert device._twin is None
        assert built.services.twins.queries == 0
