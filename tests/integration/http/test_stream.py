"""The stream of events over a real connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bridge.http import stream
from bridge.tokens import Role
from tests.integration.http.house import House, house
from tests.integration.http.test_access import bearer, token_of


class Events:
    """The events of one connection."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()

    async def next(self) -> dict[str, str]:
        """The fields of the next event or comment."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(10):
            async for line in self._lines:
                if not line:
                    return fields
                name, _, value = line.partition(": ")
                fields[name] = value
        raise EOFError

    async def rest(self) -> None:
        """Read to the end."""
        async for _ in self._lines:
            pass

    async def data(self) -> tuple[str, Any]:
        """Kind and data of the next event."""
        fields = await self.next()
        return fields["event"], json.loads(fields["data"])


@asynccontextmanager
async def following(client: httpx.AsyncClient, query: str = "", **headers: str) -> AsyncIterator[Events]:
    async with client.stream(
        "GET", f"/api/v1/stream{query}", headers={name.replace("_", "-"): value for name, value in headers.items()}
    ) as answer:
        events = Events(answer)
        if answer.status_code == 200:
            assert "retry" in await events.next()
        yield events


async def test_readings_and_commands_are_seen_as_they_happen(open_house: House) -> None:
    async with following(open_house.client, "?device=fridge-7&kind=telemetry&kind=command") as events:
        assert events.answer.headers["content-type"].startswith("text/event-stream")
        assert events.answer.headers["x-content-type-options"] == "nosniff"
        await open_house.receive("devices/another/telemetry", b'{"t": 1}')
        await open_house.receive("devices/fridge-7/telemetry/box", b'{"t": 2,\n\n"data": "<script>"}')
        kind, body = await events.data()
        assert (kind, body["device_id"], body["stream"]) == ("telemetry", "fridge-7", "box")
        assert body["values"] == {"t": 2, "data": "<script>"}
        await open_house.client.post("/api/v1/devices/fridge-7/commands", json={"name": "reboot"})
        kind, body = await events.data()
        assert (kind, body["status"], body["name"]) == ("command", "queued", "reboot")


async def test_devices_with_a_tag_are_followed_and_those_that_get_it_later(
    open_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT", 0.05)
    registry = "/api/v1/registry"
    some = {"devices": [{"device_id": "a", "tags": ["cold"]}, {"device_id": "b", "tags": []}]}
    assert (await open_house.client.post(registry, json=some)).status_code == 200
    async with following(open_house.client, "?tag=cold&kind=telemetry") as events:
        await open_house.receive("devices/b/telemetry", b'{"n": 1}')
        await open_house.receive("devices/a/telemetry", b'{"n": 2}')
        while "data" not in (fields := await events.next()):
            pass
        assert json.loads(fields["data"])["device_id"] == "a"
        await open_house.client.patch(f"{registry}/b", json={"add_tags": ["cold"]})
        await events.next()  # of a later look than the one that may have been under way
        await events.next()
        await open_house.receive("devices/b/telemetry", b'{"n": 3}')
        while "data" not in (fields := await events.next()):
            pass
        assert json.loads(fields["data"])["device_id"] == "b"
    monkeypatch.setattr(stream, "MAX_TAGGED", 1)
    async with following(open_house.client, "?tag=cold") as refused:
        assert refused.answer.status_code == 422


async def test_a_dead_letter_is_seen(open_house: House) -> None:
    async with following(open_house.client, "?kind=dead_letter") as events:
        await open_house.receive("devices/fridge-7/telemetry", b"<script>")
        kind, body = await events.data()
        assert (kind, body["reason"], body["device_id"]) == ("dead_letter", "not_json", "fridge-7")


async def test_a_connection_that_was_lost_is_taken_up(open_house: House) -> None:
    async with following(open_house.client, "?kind=telemetry") as events:
        await open_house.receive("devices/a/telemetry", b'{"n": 1}')
        seen = (await events.next())["id"]
    await open_house.receive("devices/a/telemetry", b'{"n": 2}')
    async with following(open_house.client, "?kind=telemetry", last_event_id=seen) as events:
        assert (await events.data())[1]["values"] == {"n": 2}
    async with following(open_house.client, last_event_id="1") as events:
        assert await events.data() == ("gap", {"missed": None})


async def test_streams_are_bounded(url: str, tmp_path: Path) -> None:
    async with house(url, tmp_path, max_streams=1) as small:
        async with following(small.client), following(small.client) as second:
            assert second.answer.status_code == 429
            assert second.answer.headers["content-type"] == "application/problem+json"
        async with asyncio.timeout(10):
            while small.bridge.services.feed.listeners:  # noqa: ASYNC110 - the server sees the end when it sees it
                await asyncio.sleep(0.01)
        async with following(small.client) as third:
            assert third.answer.status_code == 200


async def test_a_revoked_token_ends_its_streams(locked_house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT", 0.05)
    viewer = await token_of(locked_house, Role.VIEWER)
    async with following(locked_house.client, Authorization=f"Bearer {viewer}") as events:
        assert "" in await events.next(), "a comment"
        admin = bearer(locked_house.bridge.first_token or "")
        await locked_house.client.delete("/api/v1/tokens/a-viewer", headers=admin)
        async with asyncio.timeout(10):
            await events.rest()


async def test_a_bridge_that_stops_does_not_wait_for_its_streams(url: str, tmp_path: Path) -> None:
    async with house(url, tmp_path) as stopping, following(stopping.client) as events:
        async with asyncio.timeout(1.5):
            await stopping.bridge.stop()
            await events.rest()
