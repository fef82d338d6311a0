"""Telemetry in partitions by day on PostgreSQL; rollups by minute and hour; cursors; indexes for pruning by time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("telemetry_minute", "telemetry_hour"):
        op.create_table(
            name,
            sa.Column("device_id", sa.Text(), nullable=False),
            sa.Column("stream", sa.Text(), nullable=False),
            sa.Column("field", sa.Text(), nullable=False),
            sa.Column("start", sa.BigInteger(), nullable=False),
            sa.Column("count", sa.BigInteger(), nullable=False),
            sa.Column("min", sa.Double(), nullable=False),
            sa.Column("max", sa.Double(), nullable=False),
            sa.Column("sum", sa.Double(), nullable=False),
            sa.Column("last_ts", sa.Double(), nullable=False),
            sa.Column("last", sa.Double(), nullable=False),
            sa.PrimaryKeyConstraint("device_id", "stream", "field", "start", name=f"{name}_pkey"),
            sqlite_with_rowid=False,
        )
        op.create_index(f"{name}_start", name, ["start"])
    op.create_table(
        "cursors",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="cursors_pkey"),
    )
    op.create_index("presence_at", "presence", ["at"])
    if op.get_bind().dialect.name == "postgresql":
        _partition()


def _partition() -> None:
    """What is there becomes the first partition, up to the end of its last day; nothing is copied."""
    op.create_table(
        "message_ids",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "stream", "message_id", name="message_ids_pkey"),
    )
    op.create_index("message_ids_received_at", "message_ids", ["received_at"])
    op.execute(
        "INSERT INTO message_ids SELECT device_id, stream, message_id, received_at FROM telemetry"
        " WHERE message_id IS NOT NULL"
    )
    op.execute("DROP INDEX telemetry_device_id_stream_message_id")
    op.execute("ALTER TABLE telemetry DROP CONSTRAINT telemetry_pkey")
    op.execute("ALTER TABLE telemetry RENAME TO telemetry_before")
    op.execute("ALTER INDEX telemetry_device_id_stream_ts RENAME TO telemetry_before_device_id_stream_ts_idx")
    op.execute(
        "CREATE TABLE telemetry (id bigint NOT NULL, device_id text NOT NULL, stream text NOT NULL,"
        " ts double precision NOT NULL, received_at double precision NOT NULL, message_id text, payload json NOT NULL,"
        " CONSTRAINT telemetry_pkey PRIMARY KEY (id, received_at)) PARTITION BY RANGE (received_at)"
    )
    op.execute("CREATE INDEX telemetry_device_id_stream_ts ON telemetry (device_id, stream, ts)")
    # For what no day's partition takes: a clock that was set back, or a bridge that was not there to make one.
    op.execute("CREATE TABLE telemetry_other PARTITION OF telemetry DEFAULT")
    last = op.get_bind().execute(sa.text("SELECT max(received_at) FROM telemetry_before")).scalar()
    if last is None:
        op.execute("DROP TABLE telemetry_before")
    else:
        end = (int(last) // 86_400 + 1) * 86_400
        op.execute(f"ALTER TABLE telemetry ATTACH PARTITION telemetry_before FOR VALUES FROM (MINVALUE) TO ({end})")
