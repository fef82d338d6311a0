"""A whole bridge in this process, on free ports, and a client of its API."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from bridge.app import Bridge
from bridge.messages import Message
from bridge.settings import Settings


class House:
    """One running bridge."""

    def __init__(self, bridge: Bridge, client: httpx.AsyncClient) -> None:
        self.bridge = bridge
        self.client = client

    @property
    def url(self) -> str:
        """Where its HTTP side answers."""
        return f"http://127.0.0.1:{self.bridge.http_port}"

    def another(self, **headers: str) -> httpx.AsyncClient:
        """Another client, with headers of its own (`_` stands for `-`)."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.AsyncClient(base_url=self.url, headers=named, trust_env=False)

    async def receive(self, topic: str, payload: bytes) -> None:
        """A message comes in, and is committed when this returns."""
        address = self.bridge.services.topics.parse(topic)
        assert address is not None
        receipt = self.bridge.ledger.receipt(qos=1)
        self.bridge.router.deliver([Message(address, payload, time.time(), receipt)])
        while receipt.outcome is None:
            await self.committed()

    async def committed(self) -> None:
        """What was handed to the writer before is committed."""

        async def nothing(_connection: object) -> None:
            pass

        await self.bridge.writer.submit(nothing)


@asynccontextmanager
async def house(
    url: str,
    folder: Path,
    *,
    sinks: dict[str, Any] | None = None,
    tracing: dict[str, Any] | None = None,
    retention: dict[str, Any] | None = None,
    writer: dict[str, Any] | None = None,
    **http: Any,
) -> AsyncIterator[House]:
    """A running bridge on a migrated database; `http` and the others are settings of those sections."""
    settings = Settings(
        data_dir=folder / "data",
        database={"url": url},
        mqtt={"port": 0},
        http={"port": 0, **http},
        sinks=sinks or {},
        tracing=tracing or {},
        retention=retention or {},
        writer=writer or {},
    )
    bridge = Bridge(settings)
    await bridge.start(migrate=True)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{bridge.http_port}", trust_env=False) as client:
            yield House(bridge, client)
    finally:
        await bridge.stop()
