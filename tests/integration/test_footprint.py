"""What a connected device takes, counted by Python's allocator: it depends on neither clock nor load."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

import pytest

from bridge.broker.broker import EmbeddedBroker
from bridge.broker.config import BrokerConfig
from bridge.broker.connection import Connection
from bridge.storage.sessions import SessionStore
from tests.bench import wire
from tests.integration.agents.house import house

WARM, COUNTED = 100, 400
MOST = 4_700
"""Bytes of one device that is connected, subscribed, has sent a reading and has its agent awake: all but its socket
(with uvloop about 1,200) and what the database's pages take."""


class Socket(asyncio.Transport):
    """Keeps count of the packets that are written, and nothing else."""

    __slots__ = ("closing", "written")

    def __init__(self) -> None:
        self.written = 0
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += len(wire.split(bytes(data))[0])

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no buffer."""

    def pause_reading(self) -> None:
        """Nothing more comes anyway."""

    resume_reading = pause_reading

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self.closing = True

    abort = close


def come(broker: EmbeddedBroker, number: int) -> tuple[Connection, Socket]:
    """A device connects, subscribes and sends a reading."""
    name, socket = f"device-{number:05}", Socket()
    connection = broker._new_connection()
    connection.connection_made(socket)
    connection.data_received(wire.connect(name))
    connection.data_received(wire.subscribe(1, f"devices/{name}/command/request"))
    connection.data_received(wire.publish(f"devices/{name}/telemetry", b'{"temperature":%d.5}' % number, 2))
    return connection, socket


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_connected_device_takes_no_more_than_it_needs(url: str) -> None:
    async with house(url) as built:
        store = SessionStore(built.database, built.writer)
        broker = EmbeddedBroker(BrokerConfig(port=0), built.topics, built.ledger, built.router, store)
        built.services.publish = broker.publish
        broker.accepting = True
        devices: list[tuple[Connection, Socket]] = []

        async def come_many(first: int, count: int) -> int:
            devices.extend(come(broker, number) for number in range(first, first + count))
            async with asyncio.timeout(60):
                while any(socket.written < 3 for _, socket in devices) or built.services.census.awake < len(devices):  # noqa: ASYNC110 - nobody tells when the last one has its answer
                    await asyncio.sleep(0.01)
                await built.writer.barrier()
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            before = await come_many(0, WARM)
            after = await come_many(WARM, COUNTED)
        finally:
            tracemalloc.stop()
        statuses = built.services.census.devices
        assert statuses["online"] == WARM + COUNTED
        for connection, _ in devices:
            connection.close("disconnect")
            connection.connection_lost(None)
        assert (after - before) / COUNTED <= MOST
