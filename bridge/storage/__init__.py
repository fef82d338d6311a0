"""Everything durable: tables, migrations, the database with its breaker, the group-committing writer, and queries."""
