"""Commands for many devices, and at a time or by a cron expression."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

json = sa.Text().with_variant(postgresql.JSON(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "rollouts",
        sa.Column("rollout_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("what", json, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("cursor", sa.Text(), nullable=False),
        sa.Column("refused", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("rollout_id", name="rollouts_pkey"),
        sa.UniqueConstraint("key", name="rollouts_key_key"),
    )
    op.create_index("rollouts_status_created_at", "rollouts", ["status", "created_at"])
    op.create_index("rollouts_created_at", "rollouts", ["created_at"])
    op.create_table(
        "schedules",
        sa.Column("schedule_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("what", json, nullable=False),
        sa.Column("at", sa.Double()),
        sa.Column("cron", sa.Text()),
        sa.Column("tz", sa.Text(), nullable=False),
        sa.Column("grace", sa.Double(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("next_at", sa.Double()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("schedule_id", name="schedules_pkey"),
        sa.UniqueConstraint("key", name="schedules_key_key"),
    )
    op.create_index("schedules_status_next_at", "schedules", ["status", "next_at"])
    op.create_index("schedules_created_at", "schedules", ["created_at"])
    op.create_table(
        "schedule_runs",
        sa.Column("schedule_id", sa.Text(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("schedule_id", "due_at", name="schedule_runs_pkey"),
    )


def downgrade() -> None:
    for table in ("schedule_runs", "schedules", "rollouts"):
        op.drop_table(table)
