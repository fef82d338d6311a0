"""The registry: admission and metadata of devices, their tags, their credentials."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

json = sa.Text().with_variant(postgresql.JSON(), "postgresql")


def upgrade() -> None:
    op.add_column("devices", sa.Column("admission", sa.Text(), server_default="accepted", nullable=False))
    op.add_column("devices", sa.Column("metadata", json))
    op.create_index("devices_profile_device_id", "devices", ["profile", "device_id"])
    op.create_table(
        "device_tags",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "tag", name="device_tags_pkey"),
        sqlite_with_rowid=False,
    )
    op.create_index("device_tags_tag_device_id", "device_tags", ["tag", "device_id"])
    op.create_table(
        "credentials",
        sa.Column("credential_id", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("credential_id", name="credentials_pkey"),
    )
    op.create_index("credentials_device_id", "credentials", ["device_id"])


def downgrade() -> None:
    op.drop_table("credentials")
    op.drop_table("device_tags")
    op.drop_index("devices_profile_device_id", "devices")
    op.drop_column("devices", "metadata")
    op.drop_column("devices", "admission")
