"""The registry: stored, and heeded by the agents in memory at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.agents import registry as registry_module
from bridge.agents.registry import Registry
from bridge.agents.services import Rules
from bridge.commands import CommandRequest
from bridge.errors import RefusedError, StorageUnavailableError
from bridge.profiles import Profile, Profiles
from bridge.receipts import Outcome, Receipt
from bridge.registry import MAX_CREDENTIALS, Admission, Entry
from bridge.storage import deadletters, telemetry
from bridge.storage import registry as stored
from bridge.storage.credentials import CredentialCopy
from tests.integration.agents.house import House, Line, house
from tests.waiting import eventually

PROFILES = Profiles([Profile("freezer", match=("fz-*",)), Profile("door")])


async def described(house: House, device_id: str) -> Entry | None:
    return (await house.database.read(lambda c: stored.describe(c, [device_id]))).get(device_id)


async def reasons(house: House) -> list[str]:
    await house.writer.barrier()
    return [letter.reason for letter in await house.database.read(lambda c: deadletters.list_dead_letters(c, 10))]


async def receive(house: House, device_id: str, payload: bytes = b'{"t":1}') -> Receipt:
    receipt = house.receive(f"devices/{device_id}/telemetry", payload)
    await eventually(lambda: receipt.outcome)
    return receipt


# ---------------------------------------------------------------------- what is stored


async def test_the_same_entries_again_change_nothing(url: str) -> None:
    entries = [
        Entry("fz-1", None, ("cold", "cellar", "cold"), {"room": "cellar ü", "n": 1}),
        Entry("d-2", "door", None, None),
    ]
    async with house(url, profiles=PROFILES) as h:
        assert await h.registry.put(entries) == ["fz-1", "d-2"]
        first = await described(h, "fz-1"), await described(h, "d-2")
        assert first[0] == Entry("fz-1", "freezer", ("cellar", "cold"), {"room": "cellar ü", "n": 1})
        assert first[1] == Entry("d-2", "door", (), {})
        assert await h.registry.put(entries) == []
        assert (await described(h, "fz-1"), await described(h, "d-2")) == first
        assert h.services.census.devices["unknown"] == 2


async def test_what_an_entry_leaves_out_stays(url: str) -> None:
    async with house(url, profiles=PROFILES) as h:
        await h.registry.put([Entry("a", "door", ("x",), {"n": 1})])
        await h.registry.put([Entry("a")])
        assert await described(h, "a") == Entry("a", "door", ("x",), {"n": 1})
        changed = await h.registry.change("a", add_tags=["y", "z"], remove_tags=["x"], metadata={"m": 2})
        assert changed == Entry("a", "door", ("y", "z"), {"m": 2})
        assert await h.database.read(lambda c: stored.ids_with_tag(c, "y", 10)) == ["a"]
        assert await h.database.read(lambda c: stored.ids_with_profile(c, "door", 10)) == ["a"]


async def test_ten_thousand_entries_at_once(url: str) -> None:
    async with house(url, profiles=PROFILES) as h:
        for start in range(0, 10_000, 1_000):
            await h.registry.put([Entry(f"d-{n:05}", "door", ("a", "b")) for n in range(start, start + 1_000)])
        assert len(await h.database.read(lambda c: stored.ids_with_tag(c, "b", 20_000))) == 10_000
        page = await h.database.read(lambda c: stored.list_entries(c, 3, "d-00998"))
        assert [entry.device_id for entry in page] == ["d-00999", "d-01000", "d-01001"]


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        (Entry("a b"), "device_id"),
        (Entry("a", "nothing"), "profile"),
        (Entry("a", tags=("a b",)), "tags"),
        (Entry("a", tags=tuple(f"t{n}" for n in range(33))), "tags"),
        (Entry("a", metadata={"x": "y" * 20_000}), "metadata"),
    ],
)
async def test_what_cannot_be_registered_is_named(url: str, entry: Entry, field: str) -> None:
    async with house(url, profiles=PROFILES) as h:
        with pytest.raises(RefusedError) as caught:
            await h.registry.put([Entry("ok"), entry])
        assert caught.value.reason == field
        assert await described(h, "ok") is None


# ---------------------------------------------------------------------- what the agents make of it


async def test_a_new_device_gets_its_profile_and_keeps_what_the_registry_says(url: str) -> None:
    async with house(url, profiles=PROFILES) as h:
        await receive(h, "fz-9")
        await h.writer.barrier()
        assert (await described(h, "fz-9") or Entry("")).profile == "freezer"
        await h.registry.change("fz-9", profile="door")
        await receive(h, "fz-9")
        device = h.router.find("fz-9")
        assert device is not None
        assert device.profile.name == "door"
        device.save()
        await h.writer.barrier()
        assert (await described(h, "fz-9") or Entry("")).profile == "door"


async def waiting(h: House) -> list[Entry]:
    """The devices that wait for their approval."""
    return await h.database.read(lambda c: stored.list_entries(c, 10, quarantined=True))


async def test_quarantine_until_it_is_approved(url: str) -> None:
    async with house(url, unknown=Admission.QUARANTINED) as h:
        h.router.attached("a", Line(), listening=True)
        assert (await receive(h, "a")).outcome is Outcome.DEAD_LETTERED
        assert await reasons(h) == ["quarantined"]
        with pytest.raises(RefusedError, match="devices approve a"):
            await h.router.send("a", CommandRequest("reboot"), "test")
        await h.registry.put([Entry("b")])
        await h.writer.barrier()
        assert [one.device_id for one in await waiting(h)] == ["a"]
        await h.registry.admit("a", Admission.ACCEPTED)
        assert await waiting(h) == []
        assert (await receive(h, "a")).outcome is Outcome.COMMITTED
        await h.registry.admit("a", Admission.QUARANTINED)
        assert (await receive(h, "a")).outcome is Outcome.DEAD_LETTERED
    async with house(url) as h:
        assert (await receive(h, "a")).outcome is Outcome.DEAD_LETTERED


async def test_refused_devices_leave_no_trace_but_their_letters(url: str) -> None:
    async with house(url, unknown=Admission.UNKNOWN) as h:
        line = Line()
        h.router.attached("a", line, listening=True)
        assert (await receive(h, "a")).outcome is Outcome.DEAD_LETTERED
        assert await reasons(h) == ["unknown_device"]
        assert await described(h, "a") is None
        assert not h.bodies("devices/a/presence")
        assert not await h.registry.admits("a")
        with pytest.raises(RefusedError, match="not in the registry"):
            await h.router.send("a", CommandRequest("reboot"), "test")
        # Once it is registered it takes part, with the connection that it has.
        await h.registry.put([Entry("a")])
        assert (await receive(h, "a")).outcome is Outcome.COMMITTED
        assert [body["status"] for body in h.bodies("devices/a/presence")] == ["online"]
        assert await h.registry.admits("a")
        assert h.services.census.devices == {"unknown": 0, "online": 1}


async def test_nothing_is_left_of_a_deleted_device_in_memory(url: str) -> None:
    async with house(url, Rules(sleep_after=0.3, evict_after=60.0)) as h:
        await receive(h, "a")
        assert h.router.find("a") is not None
        await h.registry.delete("a")
        await eventually(lambda: h.router.activity()["awake"] + h.router.activity()["asleep"] == 0)
        assert (await receive(h, "a")).outcome is Outcome.COMMITTED


async def test_a_deleted_device_is_gone_with_all_its_data(url: str) -> None:
    async with house(url) as h:
        for device_id in ("a", "b"):
            h.router.attached(device_id, Line(), listening=True)
            for n in range(5):
                await receive(h, device_id, b'{"id":"m%d","t":1}' % n)
            await receive(h, device_id, b"rubbish")
            await h.router.send(device_id, CommandRequest("reboot"), "test")
            await h.registry.change(device_id, add_tags=["x"])
            await h.registry.issue(device_id)
        receipts = [h.receive("devices/a/telemetry", b'{"t":%d}' % n) for n in range(100)]
        await h.registry.delete("a")
        await eventually(lambda: all(receipt.outcome for receipt in receipts))
        assert ("a", "deleted") in h.kicked
        counts = {}
        for device_id in ("a", "b"):
            counts[device_id] = await h.database.read(lambda c, d=device_id: everything_of(c, d))  # type: ignore[misc]
        assert {table: n for table, n in counts["a"].items() if n and table != "dead_letters"} == {}
        assert counts["b"]["telemetry"] == 5
        assert counts["b"]["device_tags"] == counts["b"]["credentials"] == counts["b"]["dead_letters"] == 1
        # If it comes back it is a new one.
        assert (await receive(h, "a")).outcome is Outcome.COMMITTED
        await h.writer.barrier()
        assert await described(h, "a") is not None
        with pytest.raises(RefusedError, match="no device"):
            await h.registry.delete("nobody")


async def everything_of(connection: AsyncConnection, device_id: str) -> dict[str, int]:
    from sqlalchemy import func, select

    from bridge.storage.tables import metadata

    found = {}
    for table in metadata.sorted_tables:
        if "device_id" in table.c and not (table.name == "message_ids" and connection.dialect.name == "sqlite"):
            query = select(func.count()).select_from(table).where(table.c.device_id == device_id)
            found[table.name] = (await connection.execute(query)).scalar_one()
    found["telemetry"] = await telemetry.count(connection, device_id, "default")
    return found


# ---------------------------------------------------------------------- credentials


async def test_a_credential_opens_until_it_is_revoked(url: str) -> None:
    async with house(url) as h:
        await h.registry.put([Entry("a"), Entry("b")])
        first, token = await h.registry.issue("a")
        _second, other = await h.registry.issue("a")
        assert token.encode() not in first.digest
        assert await opens(h.registry, "a", token, other, "wrong", token + "x") == [True, True, False, False]
        assert await opens(h.registry, "b", token) == [None]
        assert await h.registry.revoke("a", first.credential_id) == 1
        assert await opens(h.registry, "a", token, other) == [False, True]
        assert h.kicked == [("a", "revoked")]
        assert await h.registry.revoke("a") == 1
        assert await opens(h.registry, "a", other) == [None]
        assert await h.registry.revoke("a") == 0


async def test_credentials_of_one_device_are_few(url: str) -> None:
    async with house(url) as h:
        with pytest.raises(RefusedError, match="no device"):
            await h.registry.issue("a")
        await h.registry.put([Entry("a")])
        for _ in range(MAX_CREDENTIALS):
            await h.registry.issue("a")
        with pytest.raises(RefusedError, match="revoke one first"):
            await h.registry.issue("a")


async def opens(registry: Registry, device_id: str, *tokens: str) -> list[bool | None]:
    return [await registry.check(device_id, token.encode()) for token in tokens]


async def test_the_copy_is_asked_when_the_database_does_not_answer(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once or not in time; what is revoked meanwhile is in the copy, too."""
    monkeypatch.setattr(registry_module, "ANSWER_WITHIN", 0.01)
    answers = asyncio.Event()

    async def silent(fn: object) -> dict[str, object]:
        await answers.wait()
        return {}

    async def away(fn: object) -> None:
        raise StorageUnavailableError("away")

    async with house(url) as h:
        copy = await CredentialCopy.open(tmp_path / "credentials.db")
        await copy.refresh(h.database)
        registry = Registry(h.services, h.router, h.database, copy)
        registry.kick = h.kick
        await registry.put([Entry("a"), Entry("b")])
        tokens = {device_id: (await registry.issue(device_id))[1].encode() for device_id in "ab"}
        with monkeypatch.context() as patched:
            for look_up in (away, silent):
                patched.setattr(h.database, "look_up", look_up)
                assert await registry.check("a", tokens["a"]) is True
                assert await registry.check("a", tokens["b"]) is False
                assert await registry.check("c", tokens["a"]) is None
            await registry.revoke("a")
            assert await registry.check("a", tokens["a"]) is None
            assert await registry.check("b", tokens["b"]) is True
            answers.set()
        assert await registry.check("b", tokens["b"]) is True
        await copy.close()
