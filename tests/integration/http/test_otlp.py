"""Spans on their way to a real collector: OTLP over HTTP, as the exporter of OpenTelemetry sends it."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from bridge import tracing
from tests.integration.http.house import house
from tests.servers import free_port

MESSAGES = 200


class Collector:
    """Takes spans and keeps them."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers["content-encoding"] == "gzip":
                    body = gzip.decompress(body)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    collector.services |= {
                        attribute.value.string_value
                        for attribute in resource.resource.attributes
                        if attribute.key == "service.name"
                    }
                    collector.spans += [span for scope in resource.scope_spans for span in scope.spans]
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def attributes(self, name: str) -> list[dict[str, Any]]:
        """Those of each span of that name."""
        return [
            {one.key: one.value.string_value or one.value.int_value for one in span.attributes}
            for span in self.spans
            if span.name == name
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


async def exchange(url: str, folder: Path, endpoint: str) -> str:
    """A bridge with tracing takes messages and a command, and stops; the command's id."""
    async with house(url, folder, tracing={"endpoint": endpoint}) as traced:
        async with aiomqtt.Client("127.0.0.1", traced.bridge.mqtt_port, identifier="fridge-7") as device:
            await device.subscribe("devices/fridge-7/command/request", 1)
            for number in range(MESSAGES):
                await device.publish("devices/fridge-7/telemetry", json.dumps({"n": number}), qos=0)
            await device.publish("devices/fridge-7/telemetry", "{}", qos=1)
            sent = (await traced.client.post("/api/v1/devices/fridge-7/commands", json={"name": "reboot"})).json()
            request = json.loads((await anext(aiter(device.messages))).payload)
            answer = json.dumps({"id": request["id"], "status": "succeeded"})
            await device.publish("devices/fridge-7/command/response", answer, qos=1)
        stored = await traced.client.get("/api/v1/ledger")
        assert stored.json()["committed"] >= MESSAGES + 2
        assert stored.json()["difference"] == 0
    return str(sent["command_id"])


async def test_a_collector_gets_a_span_for_each_batch_and_command(
    url: str, tmp_path: Path, collector: Collector
) -> None:
    command_id = await exchange(url, tmp_path, collector.url)
    (command,) = collector.attributes("command")
    assert command["bridge.command.id"] == command_id
    assert command["bridge.command.status"] == "succeeded"
    batches = collector.attributes("commit")
    assert sum(batch["bridge.batch.size"] for batch in batches) >= MESSAGES + 1
    assert len(batches) < MESSAGES / 2, "spans for batches, not for messages"
    assert {span.name for span in collector.spans} == {"commit", "command"}
    assert collector.services == {"mqtt-agent-bridge"}


async def test_a_collector_that_is_not_there_is_nobodys_trouble(
    url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracing, "SENT_WITHIN", 1.0)
    await exchange(url, tmp_path, f"http://127.0.0.1:{free_port()}/v1/traces")
    assert "Traceback" not in capfd.readouterr().err
    assert len([record for record in caplog.records if record.name.startswith("opentelemetry")]) <= 1
