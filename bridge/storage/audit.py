"""The audit trail: who did what to the bridge, its devices and its tokens."""

from __future__ import annotations

from typing import Final, final

import msgspec
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.messages import Sender
from bridge.storage.deadletters import storable
from bridge.storage.tables import audit

FORGET_EVERY: Final = 64
"""Lines from one deletion of old ones to the next: a command that comes by MQTT does not wait for one each time."""
MAX_TEXT: Final = 2_000
"""Characters of a target or a detail that are kept."""

_INSERT: Final = insert(audit).returning(audit.c.id)


@final
class AuditLine(msgspec.Struct):
    """One act. `who` is the token's name, or by MQTT the user name, `address` where it came from; `at` is Unix seconds.
    `id` is given when it is stored."""

    at: float
    who: str
    address: str
    action: str
    target: str
    detail: str
    id: int = 0


def by_mqtt(at: float, sender: Sender, action: str, target: str, detail: str) -> AuditLine:
    """The line of what somebody has done by publishing a message."""
    where = f"{sender.host} client {sender.client_id}".lstrip()
    return AuditLine(at, sender.username or "anonymous", where, f"MQTT {action}", target, detail)


async def record(connection: AsyncConnection, line: AuditLine, keep: int) -> None:
    """Add a line. Every so often those that are more than `keep` lines older are forgotten."""
    texts = {name: getattr(line, name) for name in ("who", "address", "action", "target", "detail")}
    row = {"at": line.at, **{name: storable(text[:MAX_TEXT]) for name, text in texts.items()}}
    added = await connection.execute(_INSERT, row)
    if (number := added.scalar_one()) % FORGET_EVERY == 0:
        await connection.execute(delete(audit).where(audit.c.id <= number - keep))


async def list_audit(connection: AsyncConnection, limit: int, before: int | None = None) -> list[AuditLine]:
    """The latest first; `before` is the last id of the page before."""
    query = (
        select(audit.c.at, audit.c.who, audit.c.address, audit.c.action, audit.c.target, audit.c.detail, audit.c.id)
        .order_by(audit.c.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(audit.c.id < before)
    return [AuditLine(*row) for row in await connection.execute(query)]
