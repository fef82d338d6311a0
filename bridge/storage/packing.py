"""Batches as bytes, and back: what the spool keeps of them. Receipts and futures stay behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.storage.agents import AgentState
from bridge.storage.batch import WIDTH, Batch
from bridge.storage.devices import DeviceSnapshot
from bridge.storage.work import Change, Letter, Save, Transition

Unpack = Callable[[bytes], Callable[[AsyncConnection], Awaitable[Any]]]


class _Packed(msgspec.Struct, array_like=True):
    rows: list[Any]
    once: list[Any]
    letters: list[list[Any]]
    transitions: list[tuple[str, int, str, str, float]]
    saves: list[DeviceSnapshot]
    agents: list[AgentState]
    changes: list[tuple[str, bytes]]


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Packed)


def pack(batch: Batch) -> bytes:
    """What is to be stored of `batch`, whose free changes can all be packed (see `Batch.withdraw`)."""
    packed = _Packed(batch.rows, batch.once, [], [], [], [], [])
    for work in batch.work:
        if isinstance(work, Letter):
            packed.letters.append(list(work.values))
        elif isinstance(work, Transition):
            packed.transitions.append(work.values)
        elif isinstance(work, Save):
            packed.saves.append(work.snapshot)
        elif isinstance(work, Change) and work.agent is not None:
            packed.agents.append(work.agent)
        elif isinstance(work, Change) and work.packable is not None:
            packed.changes.append((work.packable.kind, work.packable.pack()))
    return _encoder.encode(packed)


def unpack(body: bytes, into: Batch, kinds: Mapping[str, Unpack]) -> None:
    """Add what was packed to the end of `into`."""
    packed = _decoder.decode(body)
    into.rows += packed.rows
    count = len(packed.rows) // WIDTH
    into.order += [None] * count
    into.size += count
    into.once += packed.once
    for values in packed.letters:
        into.add(Letter.stored(tuple(values)))
    for transition in packed.transitions:
        into.add(Transition(transition))
    for snapshot in packed.saves:
        into.add(Save(snapshot))
    for agent in packed.agents:
        into.add(Change(None, None, None, _unheard(), agent=agent))
    for kind, data in packed.changes:
        into.add(Change(kinds[kind](data), None, None, _unheard()))


def without_readings(body: bytes) -> tuple[bytes, int]:
    """The same without its readings, and how many those were. QoS 2 identifiers stay: their senders were answered."""
    packed = _decoder.decode(body)
    count = len(packed.rows) // WIDTH
    packed.rows = []
    return _encoder.encode(packed), count


def _unheard() -> asyncio.Future[Any]:
    # Whoever waited for the change has been told when it was spooled.
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future
