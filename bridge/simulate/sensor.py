"""What a simulated device measures: values that wander like those of a real room."""

from __future__ import annotations

import math
import random
from typing import Final, final

DAY: Final = 86_400.0


@final
class Sensor:
    """A room's climate: a daily course, slow drift and some noise; a battery that runs down."""

    __slots__ = ("_base", "_drift", "_random", "_started")

    def __init__(self, rng: random.Random, now: float) -> None:
        self._random = rng
        self._base = rng.uniform(17.0, 23.0)
        self._drift = 0.0
        self._started = now - rng.uniform(0, 90 * DAY)

    def measure(self, now: float) -> dict[str, float]:
        """Temperature in °C, relative humidity and battery charge in %, at Unix time `now`."""
        self._drift = max(-3.0, min(3.0, self._drift + self._random.gauss(0, 0.05)))
        daily = 2.5 * math.sin(2 * math.pi * (now % DAY / DAY - 0.375))
        temperature = self._base + daily + self._drift + self._random.gauss(0, 0.05)
        humidity = 55.0 - 2.0 * (temperature - 20.0) + self._random.gauss(0, 0.3)
        charge = 100.0 * math.exp(-(now - self._started) / (365 * DAY))
        return {
            "temperature": round(temperature, 2),
            "humidity": round(max(5.0, min(100.0, humidity)), 1),
            "battery": round(charge, 1),
        }
