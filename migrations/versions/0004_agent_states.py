"""What device logic keeps of its devices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

json = sa.Text().with_variant(postgresql.JSON(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "agent_states",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", json, nullable=False),
        sa.Column("timers", json, server_default="{}", nullable=False),
        sa.Column("due", sa.Double()),
        sa.PrimaryKeyConstraint("device_id", "agent", name="agent_states_pkey"),
    )
    op.create_index(
        "agent_states_due",
        "agent_states",
        ["due"],
        sqlite_where=sa.text("due IS NOT NULL"),
        postgresql_where=sa.text("due IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_table("agent_states")
