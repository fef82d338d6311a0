"""An index of the devices that wait for their approval."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

QUARANTINED = sa.text("admission = 'quarantined'")


def upgrade() -> None:
    op.create_index(
        "devices_quarantined", "devices", ["device_id"], sqlite_where=QUARANTINED, postgresql_where=QUARANTINED
    )


def downgrade() -> None:
    op.drop_index("devices_quarantined", "devices")
