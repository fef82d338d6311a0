"""Indexes that pages of devices are read along."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("devices_status_device_id", "devices", ["status", "device_id"])
    op.create_index("devices_last_seen_device_id", "devices", ["last_seen", "device_id"])
    op.create_index("devices_status_last_seen_device_id", "devices", ["status", "last_seen", "device_id"])


def downgrade() -> None:
    op.drop_index("devices_status_last_seen_device_id", "devices")
    op.drop_index("devices_last_seen_device_id", "devices")
    op.drop_index("devices_status_device_id", "devices")
