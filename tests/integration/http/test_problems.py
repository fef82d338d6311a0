"""Whatever goes wrong is told as problem details (RFC 9457), also where no operation has been reached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bridge.errors import StorageUnavailableError
from bridge.http.api import MAX_BODY
from tests.integration.http.house import House, house

SEND = "/api/v1/devices/fridge-7/commands"
JSON = {"Content-Type": "application/json"}


def told(answer: httpx.Response, status: int) -> str:
    """The detail of a problem; fails if the answer is none."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    assert set(problem) <= {"type", "title", "status", "detail", "instance"}
    return str(problem["detail"])


async def too_large(house: House) -> None:
    """With its length said before, and in chunks."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY // 2**16 + 1):
            yield b" " * 2**16

    assert "bytes at most" in told(await house.client.post(SEND, content=chunks(), headers=JSON), 413)
    head = f"POST {SEND} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", house.bridge.http_port)
    writer.write(head.encode())
    answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert answer.startswith(b"HTTP/1.1 413 "), "before it has sent the body"
    assert b"application/problem+json" in answer


async def test_every_way_to_be_wrong(open_house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = open_house.client.request
    told(await ask("GET", "/api/v1/nothing/of/the/kind"), 404)
    told(await ask("GET", "/nothing"), 404)
    assert "fridge-9" in told(await ask("GET", "/api/v1/devices/fridge-9"), 404)
    late = await ask("PUT", "/api/v1/devices")
    told(late, 405)
    assert "GET" in late.headers["allow"]
    told(await ask("POST", SEND, content=b"{", headers=JSON), 422)
    assert "name" in told(await ask("POST", SEND, json={}), 422)
    told(await ask("POST", SEND, content=b'{"name": "x"}', headers={"Content-Type": "text/plain"}), 415)
    await too_large(open_house)
    assert "limit" in told(await ask("GET", "/api/v1/devices?limit=0"), 422)
    assert "in this order" in told(await ask("GET", "/api/v1/devices?sort=last_seen&after=fridge-7"), 422)
    await ask("POST", SEND, json={"name": "reboot", "id": "1"})
    told(await ask("POST", SEND, json={"name": "defrost", "id": "1"}), 409)
    told(await ask("GET", "/api/v1/devices", headers={"Host": "elsewhere.example"}), 421)
    told(await ask("GET", "/api/v1/devices", headers={"Authorization": "Bearer nonsense"}), 401)

    async def away(*_work: Any) -> Any:
        raise StorageUnavailableError("it is away")

    monkeypatch.setattr(open_house.bridge.database, "_retrying", away)
    gone = await ask("GET", "/api/v1/devices")
    told(gone, 503)
    assert gone.headers["retry-after"] == "1"


async def test_too_many_wrong_tokens(url: str, tmp_path: Path) -> None:
    async with house(url, tmp_path, max_failed_logins=1) as strict:
        wrong = {"Authorization": "Bearer mab_wrong"}
        told(await strict.client.get("/api/v1/devices", headers=wrong), 401)
        late = await strict.client.get("/api/v1/devices", headers=wrong)
        told(late, 429)
        assert 0 < int(late.headers["retry-after"]) <= 61


async def test_whoever_waits_for_a_command_hears_its_next_step_or_that_there_was_none(open_house: House) -> None:
    ask = open_house.client
    command_id = (await ask.post(SEND, json={"name": "reboot"})).json()["command_id"]
    view = (await ask.get(f"/api/v1/commands/{command_id}")).json()
    seen = view["events"][-1]["seq"]
    nothing = (await ask.get(f"/api/v1/commands/{command_id}", params={"wait": 0.05, "after_seq": seen})).json()
    assert (nothing["command"]["status"], nothing["events"]) == ("queued", [])
    waiting = asyncio.create_task(
        ask.get(f"/api/v1/commands/{command_id}", params={"wait": 20, "after_seq": seen}, timeout=30)
    )
    await asyncio.sleep(0)
    await ask.post(f"/api/v1/commands/{command_id}/cancel")
    news = (await waiting).json()
    assert news["command"]["status"] == "cancelled"
    assert [event["status"] for event in news["events"]] == ["cancelled"]
