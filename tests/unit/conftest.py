"""What unit tests must leave as they found it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture
def log_as_before() -> Iterator[None]:
    """For tests that configure the log: those that follow log as if they had not."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = handlers, level
    logging.getLogger("bridge").setLevel(logging.NOTSET)
    logging.captureWarnings(False)
    structlog.reset_defaults()
