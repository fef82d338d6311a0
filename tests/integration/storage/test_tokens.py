"""Tokens and the audit trail, on both databases."""

from __future__ import annotations

import pytest

from bridge.errors import RefusedError
from bridge.storage import audit, tokens
from bridge.storage.audit import AuditLine
from bridge.storage.database import Database
from bridge.tokens import Role, Token, digest


async def test_a_token_is_kept_as_its_digest_until_it_is_revoked(database: Database) -> None:
    token = Token("dashboard", Role.VIEWER, digest("secret"), 1.5)
    await database.write(lambda connection: tokens.add_token(connection, token))
    await database.write(lambda connection: tokens.touch_token(connection, "dashboard", 2.5))
    assert await database.read(tokens.list_tokens) == [
        Token("dashboard", Role.VIEWER, digest("secret"), 1.5, used_at=2.5)
    ]
    assert await database.write(lambda connection: tokens.revoke_token(connection, "dashboard", 3.5))
    assert not await database.write(lambda connection: tokens.revoke_token(connection, "dashboard", 4.5))
    (found,) = await database.read(tokens.list_tokens)
    assert found.revoked_at == 3.5


@pytest.mark.parametrize(("name", "reason"), [("taken", "name_taken"), ("a b", "bad_name"), ("", "bad_name")])
async def test_what_is_no_name_for_a_token(database: Database, name: str, reason: str) -> None:
    await database.write(lambda connection: tokens.add_token(connection, Token("taken", Role.ADMIN, b"1", 1.0)))
    with pytest.raises(RefusedError) as refused:
        await database.write(lambda connection: tokens.add_token(connection, Token(name, Role.ADMIN, b"2", 1.0)))
    assert refused.value.reason == reason


async def test_tokens_are_bounded_and_revoked_ones_make_room(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MAX_TOKENS", 2)
    for name in ("one", "two"):
        token = Token(name, Role.VIEWER, name.encode(), 1.0)
        await database.write(lambda connection, token=token: tokens.add_token(connection, token))  # type: ignore[misc]
    three = Token("three", Role.VIEWER, b"three", 1.0)
    with pytest.raises(RefusedError, match="revoke one"):
        await database.write(lambda connection: tokens.add_token(connection, three))
    await database.write(lambda connection: tokens.revoke_token(connection, "one", 2.0))
    await database.write(lambda connection: tokens.add_token(connection, three))
    assert [token.name for token in await database.read(tokens.list_tokens)] == ["three", "two"]


async def test_the_audit_trail_keeps_the_latest_lines_whatever_they_hold(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "FORGET_EVERY", 1)
    for number in range(5):
        line = AuditLine(float(number), "admin", "127.0.0.1", f"act {number}", "a\0b\ud800", "x" * 10_000)
        await database.write(lambda connection, line=line: audit.record(connection, line, keep=3))  # type: ignore[misc]
    lines = await database.read(lambda connection: audit.list_audit(connection, 10))
    assert [line.action for line in lines] == ["act 4", "act 3", "act 2"]
    assert (lines[0].target, len(lines[0].detail)) == ("a\ufffdb\ufffd\ufffd\ufffd", audit.MAX_TEXT)
    older = await database.read(lambda connection: audit.list_audit(connection, 10, before=lines[1].id))
    assert [line.action for line in older] == ["act 2"]
