"""Sessions end, and guessing does not pay."""

from __future__ import annotations

from bridge.http import visitors
from bridge.http.visitors import WINDOW, Lockout, Sessions


def test_a_session_ends_with_its_lifetime() -> None:
    sessions = Sessions(lifetime=100.0)
    session_id = sessions.open("admin", now=1000.0)
    assert sessions.find(session_id, 1099.9) == "admin"
    assert sessions.find(session_id, 1100.0) is None
    assert sessions.find("another", 1000.0) is None


def test_a_closed_session_is_gone_and_can_be_closed_again() -> None:
    sessions = Sessions(lifetime=100.0)
    session_id = sessions.open("admin", now=0.0)
    sessions.close(session_id)
    sessions.close(session_id)
    assert sessions.find(session_id, 0.0) is None


def test_sessions_are_bounded() -> None:
    sessions = Sessions(lifetime=100.0)
    ids = [sessions.open("admin", now=0.0) for _ in range(visitors.MAX_SESSIONS + 1)]
    assert sessions.find(ids[0], 0.0) is None
    assert sessions.find(ids[1], 0.0) == sessions.find(ids[-1], 0.0) == "admin"


def test_an_address_is_locked_out_until_the_minute_is_over() -> None:
    lockout = Lockout(limit=2)
    lockout.failed("192.0.2.1", 0.0)
    assert lockout.locked_for("192.0.2.1", 10.0) == 0.0
    lockout.failed("192.0.2.1", 10.0)
    assert lockout.locked_for("192.0.2.1", 20.0) == WINDOW - 20.0
    assert lockout.locked_for("192.0.2.2", 20.0) == 0.0
    assert lockout.locked_for("192.0.2.1", WINDOW) == 0.0
    lockout.failed("192.0.2.1", WINDOW)
    assert lockout.locked_for("192.0.2.1", WINDOW) == 0.0, "the count begins anew"


def test_a_network_of_ipv6_counts_as_one_address() -> None:
    lockout = Lockout(limit=1)
    lockout.failed("2001:db8::1", 0.0)
    assert lockout.locked_for("2001:db8::2:3", 0.0) > 0
    assert lockout.locked_for("2001:db8:0:1::1", 0.0) == 0


def test_suspects_are_bounded() -> None:
    lockout = Lockout(limit=1)
    for number in range(visitors.MAX_SUSPECTS + 1):
        lockout.failed(f"{number >> 8}.{number & 255}.0.1", 0.0)
    assert lockout.locked_for("0.0.0.1", 0.0) == 0.0
    assert lockout.locked_for("0.1.0.1", 0.0) > 0.0
