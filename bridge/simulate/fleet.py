"""Many simulated devices at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from bridge.simulate.client import Target
from bridge.simulate.device import SimulatedDevice
from bridge.simulate.figures import Figures
from bridge.topics import Topics

CONNECTING: Final = 50
"""Devices that connect at once: a broker's backlog is not endless."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What kind of devices, and how many. `rate` is in readings per second and device."""

    devices: int
    rate: float = 1.0
    qos: int = 1
    prefix: str = "sim-"
    root: str = "devices"

    def ids(self) -> list[str]:
        """The devices' ids: `sim-0001` and on."""
        width = max(4, len(str(self.devices)))
        return [f"{self.prefix}{number:0{width}}" for number in range(1, self.devices + 1)]


async def run(plan: Plan, target: Target, figures: Figures) -> None:
    """Be all devices until cancelled; then each disconnects. `figures` tell how it goes."""
    topics = Topics(plan.root)
    gate = asyncio.Semaphore(CONNECTING)
    async with asyncio.TaskGroup() as group:
        for device_id in plan.ids():
            device = SimulatedDevice(
                device_id, target, topics, figures, gate, rate=plan.rate, qos=plan.qos, seed=device_id
            )
            group.create_task(device.run(), name=device_id)
