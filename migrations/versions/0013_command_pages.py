"""Indexes that pages of commands are read along."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

IN_ROLLOUT = sa.text("rollout_id IS NOT NULL")

# A place in the list is `created_at` and `command_id`: without the latter an index leaves something to sort.
BEFORE: tuple[tuple[str, ...], ...] = (("created_at",), ("device_id", "created_at"), ("rollout_id", "status"))
AFTER: tuple[tuple[str, ...], ...] = (
    ("created_at", "command_id"),
    ("device_id", "created_at", "command_id"),
    ("status", "created_at", "command_id"),
)
OF_ROLLOUTS: tuple[tuple[str, ...], ...] = (
    ("rollout_id", "created_at", "command_id"),
    ("rollout_id", "status", "created_at", "command_id"),
)


def upgrade() -> None:
    for columns in BEFORE:
        _drop(columns)
    for columns in AFTER:
        _create(columns)
    for columns in OF_ROLLOUTS:
        _create(columns, sqlite_where=IN_ROLLOUT, postgresql_where=IN_ROLLOUT)


def downgrade() -> None:
    for columns in (*AFTER, *OF_ROLLOUTS):
        _drop(columns)
    for columns in BEFORE:
        _create(columns)


def _create(columns: tuple[str, ...], **where: Any) -> None:
    op.create_index(_name(columns), "commands", list(columns), **where)


def _drop(columns: tuple[str, ...]) -> None:
    op.drop_index(_name(columns), "commands")


def _name(columns: tuple[str, ...]) -> str:
    return f"commands_{'_'.join(columns)}"
