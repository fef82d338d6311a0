"""What others do to a bridge while somebody looks at its page."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from typing import Any

from tests.acceptance.process import BridgeProcess


def publish(bridge: BridgeProcess, topic: str, payload: str) -> None:
    """A message from a device, by a client that we did not write; acknowledged when this returns."""
    command = ["mosquitto_pub", "-p", str(bridge.mqtt_port), "-q", "1", "-t", topic, "-s"]
    subprocess.run(command, check=True, timeout=60, input=payload.encode())


def change(bridge: BridgeProcess, method: str, path: str, body: Any) -> None:
    """A change over the API, from somebody else."""
    headers = {"Content-Type": "application/json"} | (
        {"Authorization": f"Bearer {bridge.token}"} if bridge.token else {}
    )
    request = urllib.request.Request(  # noqa: S310 - our own loopback URL
        bridge.url(f"/api/v1{path}"), json.dumps(body).encode(), headers, method=method
    )
    urllib.request.urlopen(request, timeout=60).close()  # noqa: S310 - our own loopback URL
