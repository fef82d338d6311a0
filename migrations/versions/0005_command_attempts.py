"""Commands are sent again up to a number of times, may belong to a rollout, and are listed by time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("commands", sa.Column("max_attempts", sa.Integer(), server_default=sa.text("1"), nullable=False))
    op.add_column("commands", sa.Column("retry_after", sa.Double(), server_default=sa.text("10"), nullable=False))
    op.add_column("commands", sa.Column("rollout_id", sa.Text()))
    op.create_index("commands_created_at", "commands", ["created_at"])
    op.create_index("commands_rollout_id_status", "commands", ["rollout_id", "status"])


def downgrade() -> None:
    op.drop_index("commands_rollout_id_status", "commands")
    op.drop_index("commands_created_at", "commands")
    for column in ("rollout_id", "retry_after", "max_attempts"):
        op.drop_column("commands", column)
