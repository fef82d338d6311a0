"""The tokens of the API, by their digests."""

from __future__ import annotations

from typing import Final

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bridge.errors import RefusedError
from bridge.storage.tables import tokens
from bridge.tokens import Role, Token, is_name

MAX_TOKENS: Final = 1_000
"""Tokens that are kept, revoked ones with them; then the oldest revoked one makes room."""


async def list_tokens(connection: AsyncConnection) -> list[Token]:
    """All tokens, revoked ones too, in the order of their names."""
    query = select(
        tokens.c.name,
        tokens.c.role,
        tokens.c.digest,
        tokens.c.created_at,
        tokens.c.used_at,
        tokens.c.revoked_at,
    ).order_by(tokens.c.name)
    return [
        Token(name, Role(role), bytes(digest), *times) for name, role, digest, *times in await connection.execute(query)
    ]


async def add_token(connection: AsyncConnection, token: Token) -> None:
    """Store a token. Raises RefusedError: `bad_name`, `name_taken`, `too_many_tokens`."""
    if not is_name(token.name):
        raise RefusedError(
            "bad_name", "a token's name has 1 to 64 of A-Z a-z 0-9 . _ @ - and begins with a letter or digit"
        )
    if (await connection.execute(select(tokens.c.name).where(tokens.c.name == token.name))).first() is not None:
        raise RefusedError("name_taken", f"there is or was a token {token.name}: choose another name")
    count = (await connection.execute(select(func.count()).select_from(tokens))).scalar_one()
    if count >= MAX_TOKENS:
        oldest = select(tokens.c.name).where(tokens.c.revoked_at.is_not(None)).order_by(tokens.c.revoked_at).limit(1)
        gone = await connection.execute(delete(tokens).where(tokens.c.name.in_(oldest.scalar_subquery())))
        if gone.rowcount == 0:
            raise RefusedError("too_many_tokens", f"there are {MAX_TOKENS} tokens: revoke one that nobody needs")
    await connection.execute(
        insert(tokens).values(name=token.name, role=token.role.value, digest=token.digest, created_at=token.created_at)
    )


async def revoke_token(connection: AsyncConnection, name: str, at: float) -> bool:
    """Whether there was such a token that was not revoked yet."""
    result = await connection.execute(
        update(tokens).where(tokens.c.name == name, tokens.c.revoked_at.is_(None)).values(revoked_at=at)
    )
    return result.rowcount == 1


async def touch_token(connection: AsyncConnection, name: str, at: float) -> None:
    """Remember when a token was used last."""
    await connection.execute(update(tokens).where(tokens.c.name == name).values(used_at=at))
