"""schemathesis against the real server: no answer is a fault of ours, and every answer is one that the schema knows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.acceptance.clients import Device
from tests.acceptance.conftest import MakeBridge
from tests.acceptance.process import BridgeProcess

LEFT_OUT = "^/api/v1/stream$"
"""An answer without an end."""
EXAMPLES = 4
"""Random requests for each operation, beside about two thousand that stand for every parameter's border cases."""


def examined(bridge: BridgeProcess, *options: str) -> str:
    """What schemathesis says; fails if it found anything."""
    found = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")), "run", bridge.url("/openapi.json"),
            "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,"
            "response_schema_conformance,response_headers_conformance",
            "--phases", "examples,coverage,fuzzing",
            "--max-examples", str(EXAMPLES),
            "--exclude-path-regex", LEFT_OUT,
            "--generation-deterministic",
            "--no-color",
            *options,
        ],
        cwd=bridge.folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-12_000:] + found.stderr
    return found.stdout


def test_schemathesis_finds_nothing(make_bridge: MakeBridge) -> None:
    bridge = make_bridge().start()
    with Device(bridge, "fridge-7") as device:
        device.publish_acknowledged("devices/fridge-7/telemetry", '{"id": "1", "temperature": 4.2}')
        device.publish_acknowledged("devices/fridge-7/telemetry", "<script>")
    summary = examined(bridge)
    print(summary[-3000:])
    assert re.search(r"[1-9]\d* generated", summary), summary[-2000:]
    assert bridge.get("/api/v1/ledger")["difference"] == 0
