"""Where the broker is, how long to wait before another attempt, and the MQTT client of a replay."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import aiomqtt

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
QUEUED: Final = 1_000
"""Messages from the broker that wait for a device; more are discarded, as a small device would."""

# The library logs what it also raises.
_quiet: Final = logging.getLogger("bridge.simulate.aiomqtt")
_quiet.setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Target:
    """The broker that devices connect to."""

    host: str
    port: int
    username: str | None = None
    password: str | None = None


def client(target: Target, client_id: str, *, window: int, timeout: float = 30.0) -> aiomqtt.Client:
    """A client to be entered with `async with`. `window`: QoS 1 and 2 messages in flight at most; `timeout`: seconds
    that one acknowledgement may take: a bridge whose database is away delays them."""
    made = aiomqtt.Client(
        target.host,
        target.port,
        username=target.username,
        password=target.password,
        identifier=client_id,
        clean_session=True,
        keepalive=60,
        timeout=timeout,
        max_inflight_messages=window,
        max_queued_incoming_messages=QUEUED,
        logger=_quiet,
    )
    made.pending_calls_threshold = window + 10
    return made


def pauses(rng: random.Random) -> Iterator[float]:
    """Seconds to wait before each further attempt: exponential, with jitter: devices must not come back at once."""
    pause = FIRST_PAUSE
    while True:
        yield pause * rng.uniform(0.5, 1.0)
        pause = min(LONGEST_PAUSE, pause * 2)


def cause(error: BaseException) -> BaseException:
    """What ended a connection, out of the groups that tasks wrap it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def heed_cancellation() -> None:
    """Raise CancelledError if this task was told to end and that was swallowed.

    aiomqtt waits with `asyncio.wait_for`, which in Python 3.11 returns as if nothing had been when the cancellation
    and what it waited for come at once. So this belongs after each of its calls that is not the task's last.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
