"""A sink that publishes to another MQTT broker."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, final

import aiomqtt
import msgspec
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bridge.sinks.sink import Sink, SinkUnavailableError, envelope
from bridge.storage.committed import Record

CONNECT_WITHIN: Final = 10.0
ACKNOWLEDGED_WITHIN: Final = 30.0
"""Seconds for all the acknowledgements of one delivery."""


@dataclass(frozen=True, slots=True)
class Broker:
    """Where to, and as whom."""

    host: str
    port: int
    client_id: str
    username: str | None = None
    password: str | None = None
    version: Literal["3.1.1", "5"] = "5"
    tls: bool = False
    ca_file: Path | None = None


@final
class Upstream(Sink):
    """Publishes each record with QoS 1 on `{prefix}/{device_id}/{kind}` (telemetry and events with their stream), as
    the JSON envelope whose `id` is the idempotency key; in MQTT 5 that is also the user property `id`. Delivered means
    that the broker has acknowledged every one."""

    def __init__(self, broker: Broker, prefix: str) -> None:
        self._broker = broker
        self._prefix = prefix
        self._client: aiomqtt.Client | None = None

    async def deliver(self, records: Sequence[Record]) -> None:
        """Publish the records and wait for all acknowledgements."""
        try:
            client = await self._connected()
            async with asyncio.timeout(ACKNOWLEDGED_WITHIN), asyncio.TaskGroup() as group:
                for record in records:
                    group.create_task(self._publish(client, record))
        except* (aiomqtt.MqttError, OSError, TimeoutError) as errors:
            await self.close()
            error = _first(errors)
            where = f"{self._broker.host}:{self._broker.port}"
            raise SinkUnavailableError(f"broker {where}: {str(error) or type(error).__name__}") from error

    async def _publish(self, client: aiomqtt.Client, record: Record) -> None:
        rest = record.name.removeprefix("event/") if record.kind in ("telemetry", "event") else ""
        topic = "/".join(filter(None, (self._prefix, record.device_id, record.kind, rest)))
        properties: Any = None
        if self._broker.version == "5":
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho has not typed it
            properties.UserProperty = [("id", record.key)]
        payload = msgspec.json.encode(envelope(record))
        await client.publish(topic, payload, qos=1, timeout=ACKNOWLEDGED_WITHIN, properties=properties)

    async def _connected(self) -> aiomqtt.Client:
        if self._client is not None:
            return self._client
        broker = self._broker
        client = aiomqtt.Client(
            broker.host,
            broker.port,
            identifier=broker.client_id,
            username=broker.username,
            password=broker.password,
            protocol=aiomqtt.ProtocolVersion.V5 if broker.version == "5" else aiomqtt.ProtocolVersion.V311,
            tls_context=ssl.create_default_context(cafile=broker.ca_file) if broker.tls else None,
            timeout=CONNECT_WITHIN,
            max_queued_outgoing_messages=0,
            max_inflight_messages=100,
        )
        await client.__aenter__()
        self._client = client
        return client

    async def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is None:
            return
        try:
            await client.__aexit__(None, None, None)
        except aiomqtt.MqttError:
            return  # the connection that is to be closed is gone already


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
