"""Devices, and the bridge's own figures, over the API."""

from __future__ import annotations

import asyncio

import aiomqtt

from bridge import tokens
from bridge.storage import tokens as stored_tokens
from bridge.storage.devices import DeviceSnapshot
from tests.integration.http.house import House


async def test_devices_are_found_by_what_is_known_of_them(open_house: House) -> None:
    client = open_house.client
    for number in range(5):
        await open_house.receive(f"devices/d-{number}/telemetry", b'{"t": 1}')
    await client.patch("/api/v1/registry/d-3", json={"add_tags": ["north"], "metadata": {"name": "Shelf 3"}})
    await open_house.committed()
    first = (await client.get("/api/v1/devices", params={"limit": 2, "sort": "-id"})).json()
    assert [device["device_id"] for device in first["devices"]] == ["d-4", "d-3"]
    assert first["known"] == 5
    assert first["devices"][1]["tags"] == ["north"]
    assert first["devices"][1]["metadata"] == {"name": "Shelf 3"}
    rest = await client.get("/api/v1/devices", params={"limit": 9, "sort": "-id", "after": first["next"]})
    assert [device["device_id"] for device in rest.json()["devices"]] == ["d-2", "d-1", "d-0"]
    for query in ({"tag": "north"}, {"search": "SHELF"}, {"prefix": "d-3"}):
        found = (await client.get("/api/v1/devices", params=query)).json()
        assert [device["device_id"] for device in found["devices"]] == ["d-3"], query
    for wrong in ({"after": "d-1", "sort": "last_seen"}, {"sort": "name"}, {"status": "here"}, {"prefix": "%"}):
        assert (await client.get("/api/v1/devices", params=wrong)).status_code == 422, wrong


async def test_a_deleted_device_is_not_counted_any_more(open_house: House) -> None:
    async def known() -> dict[str, int]:
        found = (await open_house.client.get("/api/v1/summary")).json()["devices"]
        return {status: count for status, count in found.items() if count}

    async with aiomqtt.Client("127.0.0.1", open_house.bridge.mqtt_port, identifier="fridge-7") as device:
        await device.publish("devices/fridge-7/telemetry", "{}", qos=1)
        await open_house.client.post("/api/v1/registry", json={"devices": [{"device_id": "fridge-8"}]})
        assert await known() == {"known": 2, "online": 1, "unknown": 1}
        for device_id in ("fridge-7", "fridge-8"):
            assert (await open_house.client.delete(f"/api/v1/registry/{device_id}")).status_code == 204
        assert await known() == {}
    await open_house.committed()
    assert await known() == {}, "nor when the connection of a deleted one ends"
    await open_house.receive("devices/fridge-8/telemetry", b"{}")
    assert (await known())["known"] == 1


async def test_the_last_hour_in_columns(open_house: House) -> None:
    open_house.bridge.history.sample()
    columns = (await open_house.client.get("/api/v1/summary/history")).json()
    assert {"ts", "messages_per_second", "commit_ms", "online", "unknown"} <= set(columns)
    assert len({len(column) for column in columns.values()}) == 1


async def test_settings_are_shown_without_secrets(locked_house: House) -> None:
    headers = {"Authorization": f"Bearer {locked_house.bridge.first_token}"}
    answer = await locked_house.client.get("/api/v1/settings", headers=headers)
    settings = {setting["key"]: setting["value"] for setting in answer.json()["settings"]}
    assert settings["http.require_token"] is True
    assert settings["http.token"] is None
    assert settings["mqtt.plugins"] == {}


async def test_the_agents_and_those_that_are_slow(open_house: House) -> None:
    await open_house.receive("devices/d-1/telemetry", b'{"t": 1}')
    found = (await open_house.client.get("/api/v1/agents")).json()
    assert (found["awake"], found["asleep"], found["cold"], found["restarts"]) == (1, 0, 0, 0)
    assert found["ledger"]["difference"] == 0
    assert found["waiting"] == []
    services = open_house.bridge.services
    loader, opened = services.loader, asyncio.Event()

    class Slow:
        async def load(self, device_id: str) -> DeviceSnapshot | None:
            await opened.wait()
            return await loader.load(device_id)

    services.loader = Slow()  # type: ignore[assignment]  # as much of a loader as a cell needs
    receiving = asyncio.create_task(open_house.receive("devices/d-2/telemetry", b'{"t": 1}'))
    await asyncio.sleep(0)
    (slow,) = (await open_house.client.get("/api/v1/agents", params={"longer_than": 0})).json()["waiting"]
    assert (slow["device_id"], slow["reason"], slow["messages"], slow["handler"]) == ("d-2", "state", 1, "")
    assert (await open_house.client.get("/api/v1/agents", params={"longer_than": 600})).json()["waiting"] == []
    opened.set()
    await receiving


async def test_a_viewer_may_see_the_agents(locked_house: House) -> None:
    assert (await locked_house.client.get("/api/v1/agents")).status_code == 401
    services = locked_house.bridge.services
    secret = tokens.mint()
    token = tokens.Token("viewer", tokens.Role.VIEWER, tokens.digest(secret), services.clock())
    await services.writer.submit(lambda connection: stored_tokens.add_token(connection, token))
    headers = {"Authorization": f"Bearer {secret}"}
    assert (await locked_house.client.get("/api/v1/agents", headers=headers)).status_code == 200
