"""Devices that do not write JSON, and devices that must keep to a schema."""

from __future__ import annotations

import cbor2
import msgspec

from bridge.payloads import Format
from bridge.profiles import Profile, Profiles
from bridge.receipts import Outcome
from bridge.schemas import Schema
from bridge.storage import deadletters, telemetry
from tests.integration.agents.house import house
from tests.waiting import eventually

PROFILES = Profiles(
    [
        Profile("any", match=("any-*",), format=Format.AUTO),
        Profile("strict", match=("strict-*",), schemas={"default": Schema({"properties": {"t": {"type": "number"}}})}),
    ]
)


async def test_all_formats_are_stored_as_json(url: str) -> None:
    async with house(url, profiles=PROFILES) as h:
        payloads = [b'{"id":"a","t":1}', cbor2.dumps({"id": "b", "t": 2}), msgspec.msgpack.encode({"id": "c", "t": 3})]
        receipts = [h.receive("devices/any-1/telemetry", payload) for payload in [*payloads, payloads[1]]]
        await eventually(lambda: all(receipt.outcome for receipt in receipts))
        assert [receipt.outcome for receipt in receipts] == [*[Outcome.COMMITTED] * 3, Outcome.DEDUPLICATED]
        rows = await h.database.read(lambda c: telemetry.readings(c, "any-1", "default"))
        assert {row.payload for row in rows} == {'{"id":"a","t":1}', '{"id":"b","t":2}', '{"id":"c","t":3}'}


async def test_what_the_schema_does_not_allow_is_a_dead_letter(url: str) -> None:
    async with house(url, profiles=PROFILES) as h:
        good = h.receive("devices/strict-1/telemetry", b'{"t":1}')
        wrong = h.receive("devices/strict-1/telemetry", b'[{"t":1},{"t":"warm"}]')
        other = h.receive("devices/strict-1/telemetry/other", b'{"t":"warm"}')
        await eventually(lambda: good.outcome and wrong.outcome and other.outcome)
        assert (good.outcome, wrong.outcome, other.outcome) == (
            Outcome.COMMITTED,
            Outcome.DEAD_LETTERED,
            Outcome.COMMITTED,
        )
        (letter,) = await h.database.read(lambda c: deadletters.list_dead_letters(c, 10))
        assert (letter.reason, letter.error) == ("schema", '/1/t: "warm" is not of type "number"')
        assert h.bodies("devices/strict-1/error")[0]["reason"] == "schema"
