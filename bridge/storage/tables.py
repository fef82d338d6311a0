"""The tables.

All times are Unix seconds, UTC, as double precision: to the microsecond until the year 2255. One representation for
SQLite and PostgreSQL, which is also the one the agents compute with: nothing is converted per row. In psql,
`to_timestamp(ts)` shows it; in sqlite3, `datetime(ts, 'unixepoch')`.

JSON is kept as it was sent: text on SQLite, `json` (not `jsonb`) on PostgreSQL. Code sees it as `str` on both.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import UserDefinedType


class PostgresJson(UserDefinedType[str]):
    """PostgreSQL's `json`, as the text that it keeps. (SQLAlchemy's own JSON type encodes and decodes every value.)"""

    cache_ok = True
    render_bind_cast = True

    def get_col_spec(self, **kw: Any) -> str:
        """The name in DDL and casts."""
        return "JSON"


JSON: Final = Text().with_variant(PostgresJson(), "postgresql")
# Only a column that SQLite calls INTEGER is its rowid: a BIGINT key would cost a second tree.
ROW_ID: Final = BigInteger().with_variant(Integer(), "sqlite")

metadata: Final = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "pk": "%(table_name)s_pkey",
    }
)


def _number() -> Column[Any]:
    """Given by the database, growing in the order of the commits (there is one connection that writes), never again."""
    return Column("id", ROW_ID, primary_key=True)


QUARANTINED: Final = text("admission = 'quarantined'")
"""Written out, not a parameter: only so is a query seen to fit the index of those for which it is true."""

devices: Final = Table(
    "devices",
    metadata,
    Column("device_id", Text, primary_key=True),
    Column("profile", Text, nullable=False, server_default="default"),
    Column("first_seen", Double, nullable=False),
    Column("last_seen", Double, nullable=False),
    Column("messages", BigInteger, nullable=False, server_default=text("0")),
    Column("status", Text, nullable=False, server_default="unknown"),
    # Of the last presence transition: status and epoch only ever go forward together.
    Column("epoch", BigInteger, nullable=False, server_default=text("0")),
    # The agent's snapshot, NULL before the first one.
    Column("state", JSON),
    # `accepted`, or `quarantined` until it is approved.
    Column("admission", Text, nullable=False, server_default="accepted"),
    # Whatever is to be known of a device beside what it says itself: a JSON object.
    Column("metadata", JSON),
    Index("devices_profile_device_id", "profile", "device_id"),
    Index("devices_status_device_id", "status", "device_id"),
    Index("devices_last_seen_device_id", "last_seen", "device_id"),
    Index("devices_status_last_seen_device_id", "status", "last_seen", "device_id"),
    # Those that wait for their approval: few, among however many.
    Index("devices_quarantined", "device_id", sqlite_where=QUARANTINED, postgresql_where=QUARANTINED),
)

device_tags: Final = Table(
    "device_tags",
    metadata,
    Column("device_id", Text, primary_key=True),
    Column("tag", Text, primary_key=True),
    Index("device_tags_tag_device_id", "tag", "device_id"),
    sqlite_with_rowid=False,
)

credentials: Final = Table(
    "credentials",
    metadata,
    Column("credential_id", Text, primary_key=True),
    Column("device_id", Text, nullable=False),
    # SHA-256 of the token.
    Column("digest", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
    Index("credentials_device_id", "device_id"),
)

# On PostgreSQL partitioned by day of `received_at` (see partitions), which is part of its primary key there; what makes
# a message a duplicate is then `message_ids`, because an index that is unique over all partitions cannot be had.
telemetry: Final = Table(
    "telemetry",
    metadata,
    # Given by the writer before the insert, so that a batch whose COMMIT answer was lost can be sent again. Grows in
    # the order of the commits: who has seen an id has seen all that are smaller.
    Column("id", ROW_ID, primary_key=True, autoincrement=False),
    Column("device_id", Text, nullable=False),
    Column("stream", Text, nullable=False),
    Column("ts", Double, nullable=False),
    Column("received_at", Double, nullable=False),
    Column("message_id", Text),
    Column("payload", JSON, nullable=False),
    Index("telemetry_device_id_stream_ts", "device_id", "stream", "ts"),
    Index(
        "telemetry_device_id_stream_message_id",
        "device_id",
        "stream",
        "message_id",
        unique=True,
        sqlite_where=text("message_id IS NOT NULL"),
        postgresql_where=text("message_id IS NOT NULL"),
    ),
)

message_ids: Final = Table(
    "message_ids",
    metadata,
    # PostgreSQL only.
    Column("device_id", Text, primary_key=True),
    Column("stream", Text, primary_key=True),
    Column("message_id", Text, primary_key=True),
    Column("received_at", Double, nullable=False),
    Index("message_ids_received_at", "received_at"),
)


def _rollup(name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("device_id", Text, primary_key=True),
        Column("stream", Text, primary_key=True),
        # A number at the top level of the payload.
        Column("field", Text, primary_key=True),
        # Unix seconds of the beginning.
        Column("start", BigInteger, primary_key=True, autoincrement=False),
        Column("count", BigInteger, nullable=False),
        Column("min", Double, nullable=False),
        Column("max", Double, nullable=False),
        Column("sum", Double, nullable=False),
        Column("last_ts", Double, nullable=False),
        Column("last", Double, nullable=False),
        Index(f"{name}_start", "start"),
        sqlite_with_rowid=False,
    )


telemetry_minute: Final = _rollup("telemetry_minute")
telemetry_hour: Final = _rollup("telemetry_hour")

cursors: Final = Table(
    "cursors",
    metadata,
    # How far a reader of committed rows has come: rollups, sinks.
    Column("name", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),
)

agent_states: Final = Table(
    "agent_states",
    metadata,
    Column("device_id", Text, primary_key=True),
    # The agent class, as it calls itself: another class's state is not its.
    Column("agent", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("state", JSON, nullable=False),
    # For each method that a timer will call the time, and the earliest of them.
    Column("timers", JSON, nullable=False, server_default="{}"),
    Column("due", Double),
    Index("agent_states_due", "due", sqlite_where=text("due IS NOT NULL"), postgresql_where=text("due IS NOT NULL")),
)

IN_ROLLOUT: Final = text("rollout_id IS NOT NULL")

commands: Final = Table(
    "commands",
    metadata,
    Column("command_id", Text, primary_key=True),
    Column("device_id", Text, nullable=False),
    # The client's idempotency key, or the command's own id.
    Column("key", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("args", JSON, nullable=False),
    Column("status", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    # Requests sent so far, and how many there may be.
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("result", JSON),
    Column("error", Text),
    Column("max_attempts", Integer, nullable=False, server_default=text("1")),
    Column("retry_after", Double, nullable=False, server_default=text("10")),
    Column("rollout_id", Text),
    UniqueConstraint("device_id", "key"),
    Index("commands_status_expires_at", "status", "expires_at"),
    # The lists of commands are read along these, the newest first.
    Index("commands_created_at_command_id", "created_at", "command_id"),
    Index("commands_device_id_created_at_command_id", "device_id", "created_at", "command_id"),
    Index("commands_status_created_at_command_id", "status", "created_at", "command_id"),
    # A command on its own costs nothing here.
    *(
        Index(f"commands_{'_'.join(names)}", *names, sqlite_where=IN_ROLLOUT, postgresql_where=IN_ROLLOUT)
        for names in (
            ("rollout_id", "created_at", "command_id"),
            ("rollout_id", "status", "created_at", "command_id"),
        )
    ),
)

rollouts: Final = Table(
    "rollouts",
    metadata,
    Column("rollout_id", Text, primary_key=True),
    Column("key", Text, nullable=False),
    # What is sent to whom, and how many at a time.
    Column("what", JSON, nullable=False),
    Column("status", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    # All devices up to and including this one have their command, or are counted as refused.
    Column("cursor", Text, nullable=False),
    Column("refused", BigInteger, nullable=False),
    UniqueConstraint("key"),
    Index("rollouts_status_created_at", "status", "created_at"),
    Index("rollouts_created_at", "created_at"),
)

schedules: Final = Table(
    "schedules",
    metadata,
    Column("schedule_id", Text, primary_key=True),
    Column("key", Text, nullable=False),
    Column("what", JSON, nullable=False),
    Column("at", Double),
    Column("cron", Text),
    Column("tz", Text, nullable=False),
    Column("grace", Double, nullable=False),
    Column("status", Text, nullable=False),
    Column("next_at", Double),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    UniqueConstraint("key"),
    Index("schedules_status_next_at", "status", "next_at"),
    Index("schedules_created_at", "created_at"),
)

schedule_runs: Final = Table(
    "schedule_runs",
    metadata,
    Column("schedule_id", Text, primary_key=True),
    Column("due_at", Double, primary_key=True),
    Column("at", Double, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("detail", Text, nullable=False),
)

command_events: Final = Table(
    "command_events",
    metadata,
    _number(),
    Column("command_id", Text, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("cause", Text, nullable=False),
    Column("detail", Text),
    UniqueConstraint("command_id", "seq"),
    sqlite_autoincrement=True,
)

twins: Final = Table(
    "twins",
    metadata,
    Column("device_id", Text, primary_key=True),
    Column("desired", JSON, nullable=False, server_default="{}"),
    Column("desired_version", BigInteger, nullable=False, server_default=text("0")),
    Column("desired_at", Double),
    Column("reported", JSON, nullable=False, server_default="{}"),
    Column("reported_version", BigInteger, nullable=False, server_default=text("0")),
    Column("reported_at", Double),
)

twin_history: Final = Table(
    "twin_history",
    metadata,
    Column("device_id", Text, primary_key=True),
    # `desired` or `reported`.
    Column("part", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    # Merge patches from the version before to this one, and back.
    Column("patch", JSON, nullable=False),
    Column("undo", JSON, nullable=False),
    Index("twin_history_at", "at"),
)

presence: Final = Table(
    "presence",
    metadata,
    _number(),
    Column("device_id", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("at", Double, nullable=False),
    UniqueConstraint("device_id", "epoch"),
    Index("presence_at", "at"),
    sqlite_autoincrement=True,
)

epoch_floor: Final = Table(
    "epoch_floor",
    metadata,
    # One row: every epoch that is given must be larger than `epoch`. `running` is 0 after a stop in good order.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("running", Integer, nullable=False),
)

dead_letters: Final = Table(
    "dead_letters",
    metadata,
    Column("id", ROW_ID, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("topic", Text, nullable=False),
    Column("device_id", Text),
    Column("reason", Text, nullable=False),
    Column("error", Text, nullable=False),
    # At most 1 MiB; `size` is the whole payload's.
    Column("payload", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
)

sessions: Final = Table(
    "sessions",
    metadata,
    Column("client_id", Text, primary_key=True),
    Column("username", Text),
    Column("subscriptions", JSON, nullable=False, server_default="{}"),
    Column("last_seen", Double, nullable=False),
    Column("expires_at", Double),
)

session_messages: Final = Table(
    "session_messages",
    metadata,
    Column("client_id", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("topic", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("qos", Integer, nullable=False),
    # 1 for a message that was retained when the client subscribed (MQTT 3.1.1, 3.3.1.3).
    Column("retain", Integer, nullable=False, server_default=text("0")),
    Column("packet_id", Integer),
    Column("state", Text, nullable=False),
    Column("expires_at", Double),
)

retained: Final = Table(
    "retained",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("payload", LargeBinary, nullable=False),
    Column("qos", Integer, nullable=False),
    Column("set_at", Double, nullable=False),
)

inbound_once: Final = Table(
    "inbound_once",
    metadata,
    # A QoS 2 message that was stored and whose PUBREL has not come yet (MQTT 3.1.1, 4.3.3).
    Column("client_id", Text, primary_key=True),
    Column("packet_id", Integer, primary_key=True, autoincrement=False),
)

tokens: Final = Table(
    "tokens",
    metadata,
    Column("name", Text, primary_key=True),
    Column("role", Text, nullable=False),
    # SHA-256 of the token, which is kept nowhere.
    Column("digest", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("used_at", Double),
    Column("revoked_at", Double),
)

audit: Final = Table(
    "audit",
    metadata,
    Column("id", ROW_ID, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("who", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Index(None, "at"),
)

commit_marks: Final = Table(
    "commit_marks",
    metadata,
    # One row: the last batch with free statements that was committed. A writer that lost the answer to a COMMIT
    # finds out here whether it took place.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("batch", BigInteger, nullable=False),
)
