"""Transitions and steps of commands get numbers in the order of the commits, by which sinks read them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TABLES = {"presence": ("device_id", "epoch"), "command_events": ("command_id", "seq")}


def upgrade() -> None:
    for table, keys in TABLES.items():
        if op.get_bind().dialect.name == "postgresql":
            op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey")
            op.execute(f"ALTER TABLE {table} ADD COLUMN id bigserial")
            op.create_primary_key(f"{table}_pkey", table, ["id"])
            op.create_unique_constraint(f"{table}_{'_'.join(keys)}_key", table, keys)
        else:
            _rebuild(table, keys)


def _rebuild(table: str, keys: tuple[str, ...]) -> None:
    """SQLite cannot give a table another primary key. AUTOINCREMENT: a number is never given again, even when the
    newest row has been deleted."""
    inspector = sa.inspect(op.get_bind())
    columns = [sa.Column(c["name"], c["type"], nullable=c["nullable"]) for c in inspector.get_columns(table)]
    indexes = [(str(i["name"]), i["column_names"]) for i in inspector.get_indexes(table)]
    names = ", ".join(str(column.name) for column in columns)
    op.rename_table(table, f"{table}_before")
    for name, _ in indexes:
        op.execute(f"DROP INDEX {name}")
    op.create_table(
        table,
        sa.Column("id", sa.Integer(), nullable=False, autoincrement=True),
        *columns,
        sa.PrimaryKeyConstraint("id", name=f"{table}_pkey"),
        sa.UniqueConstraint(*keys, name=f"{table}_{'_'.join(keys)}_key"),
        sqlite_autoincrement=True,
    )
    for name, indexed in indexes:
        op.create_index(name, table, [str(column) for column in indexed])
    op.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM {table}_before ORDER BY rowid")  # noqa: S608 - our own tables and columns
    op.drop_table(f"{table}_before")
