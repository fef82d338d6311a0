"""Runs the migrations on the connection that bridge.storage.migrate hands over, in its transaction.

SQLite can roll back DDL too, once a transaction is really begun: bridge.storage.engine sees to that.
"""

from __future__ import annotations

from alembic import context

from bridge.storage.tables import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("start migrations with `mqtt-bridge migrate`, which locks the database first")

context.configure(
    connection=connection,
    target_metadata=metadata,
    # SQLite alters a table by copying it.
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
