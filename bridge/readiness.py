"""Whether the bridge is ready, and what is wrong with it if it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from bridge.broker.broker import EmbeddedBroker
from bridge.errors import BridgeError
from bridge.http.context import Check
from bridge.sinks.feeder import Feeder
from bridge.storage import migrate
from bridge.storage.database import Database
from bridge.storage.writer import Writer

if TYPE_CHECKING:
    from bridge.app import Bridge

ANSWER_WITHIN: Final = 2.0
"""Seconds that the database has to answer."""


def checks(bridge: Bridge) -> Mapping[str, Check]:
    """What must be right to be ready, by name: each returns None, or what is wrong."""
    return {
        "database": partial(_database, bridge.database),
        "broker": partial(_broker, bridge.broker),
        "migrations": partial(_schema, bridge.database, bridge.schema),
        "spool": partial(_spool, bridge.writer),
    }


def degraded(writer: Writer) -> str | None:
    """Why the database does not get what is received, although it is taken; None while all is well."""
    diversion = writer.diversion
    if diversion is None or not diversion.active or diversion.stuck or writer.congested:
        return None
    return f"{diversion.spool.rows:,} rows wait in the spool: {diversion.reason}"


def concern(sinks: Iterable[Feeder]) -> str | None:
    """What will go wrong if nobody does anything, while all is well yet."""
    return next((sink.endangered for sink in sinks if sink.endangered), None)


async def _database(database: Database) -> str | None:
    try:
        async with asyncio.timeout(ANSWER_WITHIN):
            await database.ping()
    except TimeoutError:
        return f"no answer within {ANSWER_WITHIN:g} seconds"
    except BridgeError as error:
        return str(error)
    return None


async def _broker(broker: EmbeddedBroker) -> str | None:
    return None if broker.accepting else "does not accept connections"


async def _schema(database: Database, needed: str | None) -> str | None:
    """`needed`: as it was at the start. Somebody may have migrated it since."""
    try:
        async with asyncio.timeout(ANSWER_WITHIN):
            found = await database.read(migrate.stored)
    except (TimeoutError, BridgeError):
        return None  # that the database does not answer is another check's to say
    return None if found == needed else f"the schema is {found}, this version needs {needed}"


async def _spool(writer: Writer) -> str | None:
    diversion = writer.diversion
    return diversion.stuck or None if diversion is not None and diversion.active else None
