"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

json = sa.Text().with_variant(postgresql.JSON(), "postgresql")
row_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "devices",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("profile", sa.Text(), server_default="default", nullable=False),
        sa.Column("first_seen", sa.Double(), nullable=False),
        sa.Column("last_seen", sa.Double(), nullable=False),
        sa.Column("messages", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("status", sa.Text(), server_default="unknown", nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("state", json),
        sa.PrimaryKeyConstraint("device_id", name="devices_pkey"),
    )
    op.create_table(
        "telemetry",
        sa.Column("id", row_id, autoincrement=False, nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("ts", sa.Double(), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.Column("message_id", sa.Text()),
        sa.Column("payload", json, nullable=False),
        sa.PrimaryKeyConstraint("id", name="telemetry_pkey"),
    )
    op.create_index("telemetry_device_id_stream_ts", "telemetry", ["device_id", "stream", "ts"])
    op.create_index(
        "telemetry_device_id_stream_message_id",
        "telemetry",
        ["device_id", "stream", "message_id"],
        unique=True,
        sqlite_where=sa.text("message_id IS NOT NULL"),
        postgresql_where=sa.text("message_id IS NOT NULL"),
    )
    op.create_table(
        "commands",
        sa.Column("command_id", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("args", json, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("result", json),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("command_id", name="commands_pkey"),
        sa.UniqueConstraint("device_id", "key", name="commands_device_id_key_key"),
    )
    op.create_index("commands_status_expires_at", "commands", ["status", "expires_at"])
    op.create_index("commands_device_id_created_at", "commands", ["device_id", "created_at"])
    op.create_table(
        "command_events",
        sa.Column("command_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text()),
        sa.PrimaryKeyConstraint("command_id", "seq", name="command_events_pkey"),
    )
    op.create_table(
        "twins",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("desired", json, server_default="{}", nullable=False),
        sa.Column("desired_version", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("desired_at", sa.Double()),
        sa.Column("reported", json, server_default="{}", nullable=False),
        sa.Column("reported_version", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("reported_at", sa.Double()),
        sa.PrimaryKeyConstraint("device_id", name="twins_pkey"),
    )
    op.create_table(
        "presence",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "epoch", name="presence_pkey"),
    )
    op.create_table(
        "dead_letters",
        sa.Column("id", row_id, autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="dead_letters_pkey"),
    )
    op.create_table(
        "sessions",
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("username", sa.Text()),
        sa.Column("subscriptions", json, server_default="{}", nullable=False),
        sa.Column("last_seen", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double()),
        sa.PrimaryKeyConstraint("client_id", name="sessions_pkey"),
    )
    op.create_table(
        "session_messages",
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("qos", sa.Integer(), nullable=False),
        sa.Column("retain", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("packet_id", sa.Integer()),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.Double()),
        sa.PrimaryKeyConstraint("client_id", "seq", name="session_messages_pkey"),
    )
    op.create_table(
        "retained",
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("qos", sa.Integer(), nullable=False),
        sa.Column("set_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("topic", name="retained_pkey"),
    )
    op.create_table(
        "inbound_once",
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("packet_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("client_id", "packet_id", name="inbound_once_pkey"),
    )
    op.create_table(
        "commit_marks",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("batch", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="commit_marks_pkey"),
    )


def downgrade() -> None:
    for table in (
        "commit_marks",
        "inbound_once",
        "retained",
        "session_messages",
        "sessions",
        "dead_letters",
        "presence",
        "twins",
        "command_events",
        "commands",
        "telemetry",
        "devices",
    ):
        op.drop_table(table)
