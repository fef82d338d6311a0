"""Simulated devices know any broker, so these tests use one that is not ours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bridge.simulate.client import Target
from tests.servers import HOST, Mosquitto


@pytest.fixture
def mosquitto() -> Iterator[Mosquitto]:
    with Mosquitto() as server:
        yield server


@pytest.fixture
def target(mosquitto: Mosquitto) -> Target:
    return Target(HOST, mosquitto.port)
