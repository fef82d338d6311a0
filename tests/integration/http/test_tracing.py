"""One span for a batch, one for a command, and nothing where tracing is off."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from bridge.tracing import Tracing
from tests.integration.http.house import house


async def test_a_span_for_a_batch_and_one_for_a_command(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(Tracing, "to", lambda _endpoint: Tracing(SimpleSpanProcessor(exporter)))
    async with house(url, tmp_path) as traced:
        await traced.receive("devices/fridge-7/telemetry", b'[{"t": 1}, {"t": 2}, {"t": 3}]')
        sent = await traced.client.post("/api/v1/devices/fridge-7/commands", json={"name": "reboot"})
        command_id = sent.json()["command_id"]
        assert not [span for span in exporter.get_finished_spans() if span.name == "command"], "it has not ended"
        await traced.client.post(f"/api/v1/commands/{command_id}/cancel")
        await traced.committed()
    spans = exporter.get_finished_spans()
    sizes = [dict(span.attributes or {})["bridge.batch.size"] for span in spans if span.name == "commit"]
    assert any(isinstance(size, int) and size >= 3 for size in sizes), "three readings, and one span"
    (command,) = [span for span in spans if span.name == "command"]
    told = dict(command.attributes or {})
    assert told["bridge.command.id"] == command_id
    assert told["bridge.command.status"] == "cancelled"
    assert command.status.status_code is StatusCode.ERROR
    assert command.start_time is not None
    assert command.end_time is not None
    assert command.end_time >= command.start_time


def test_nothing_is_imported_and_nothing_done_where_it_is_off() -> None:
    script = (
        "import sys; from bridge.tracing import Tracing; t = Tracing.to(None); t.record('x', 0.0, 1.0, {}); t.close();"
        "print(t.on, any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_without_the_extra_the_bridge_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert not Tracing.to("http://127.0.0.1:4318/v1/traces").on
