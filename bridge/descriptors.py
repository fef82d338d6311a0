"""The limit of open files: each connection is one."""

from __future__ import annotations

import resource

BESIDE_CONNECTIONS = 200
"""Open files for the database, HTTP and the log."""


def hard_limit() -> float:
    """How far this process may raise its limit; infinity if there is none."""
    return _number(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def raise_limit(wanted: int) -> float:
    """Raise the limit to `wanted`, or as far as this process may; returns what it is then. It is never lowered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _number(soft) < wanted:
        soft = wanted if _number(hard) >= wanted else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return _number(soft)


def _number(limit: int) -> float:
    return float("inf") if limit == resource.RLIM_INFINITY else limit
