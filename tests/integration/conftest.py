"""The database servers of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL server for all tests. A test that stops it must start it again."""
    with Postgres(durable=False) as server:
        yield server
