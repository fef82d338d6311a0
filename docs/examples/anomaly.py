"""Vibration that is unlike the last hours': the sums are done in another process, so that no other device waits."""

from __future__ import annotations

import statistics

import msgspec

from bridge import Agent, on

WINDOW = 200
SURPRISE = 4.0


class Vibration(msgspec.Struct):
    samples: list[float]


def energy(samples: list[float]) -> float:
    """What takes the time. Runs in a worker process, so it is a function of its own, at the top of its module."""
    mean = sum(samples) / len(samples)
    return sum((sample - mean) ** 2 for sample in samples) / len(samples)


class AnomalyDetector(Agent):
    class State(msgspec.Struct):
        history: list[float] = []
        anomalies: int = 0

    @on.telemetry("vibration")
    async def measured(self, m: Vibration) -> None:
        level = await self.offload(energy, m.samples)
        history = self.state.history
        if len(history) >= 10:
            spread = statistics.pstdev(history) or 1e-9
            surprise = abs(level - statistics.fmean(history)) / spread
            if surprise > SURPRISE:
                self.state.anomalies += 1
                await self.publish(self.topic("anomaly"), {"level": level, "surprise": round(surprise, 1)})
                return  # what is abnormal does not become the norm
        history.append(level)
        del history[:-WINDOW]
