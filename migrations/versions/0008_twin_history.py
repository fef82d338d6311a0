"""What twins have been."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

json = sa.Text().with_variant(postgresql.JSON(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "twin_history",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("patch", json, nullable=False),
        sa.Column("undo", json, nullable=False),
        sa.PrimaryKeyConstraint("device_id", "part", "version", name="twin_history_pkey"),
    )
    op.create_index("twin_history_at", "twin_history", ["at"])


def downgrade() -> None:
    op.drop_table("twin_history")
