"""Tokens and the audit trail: for admins."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query, Request
from pydantic import Field

from bridge.http.access import ADMIN
from bridge.http.audit import note
from bridge.http.keyring import Keyring
from bridge.http.models import Model, moment
from bridge.http.paging import Limit
from bridge.storage import audit as trail
from bridge.storage import tokens as stored
from bridge.storage.database import Database
from bridge.tokens import NAME, Role

PATTERN = f"^{NAME.pattern}$"
Name = Annotated[str, Path(pattern=PATTERN, examples=["dashboard"])]


class TokenBody(Model):
    """A token to be made."""

    name: str = Field(pattern=PATTERN, examples=["dashboard"])
    role: Role = Field(Role.VIEWER, examples=["viewer"])


class TokenView(Model):
    """A token, without what it is secret for."""

    name: str
    role: Role
    created_at: datetime
    used_at: datetime | None = Field(None, description="To five minutes.")
    revoked_at: datetime | None = None


class NewToken(Model):
    """A token that was just made: shown this once."""

    name: str
    role: Role
    token: str


class TokenList(Model):
    """All tokens, in the order of their names, revoked ones too."""

    tokens: list[TokenView]


class AuditView(Model):
    """One act: who did what, from where, to what."""

    id: int
    at: datetime
    who: str = Field(description="The token's name.", examples=["admin"])
    address: str
    action: str = Field(examples=["POST /devices/{device_id}/commands"])
    target: str = Field(examples=["fridge-7"])
    detail: str


class AuditPage(Model):
    """Acts, the latest first. `next` is the `before` of the following page."""

    audit: list[AuditView]
    next: int | None


def routes(keyring: Keyring, database: Database) -> APIRouter:
    """`/tokens`, `/audit`."""
    api = APIRouter(tags=["access"], dependencies=[ADMIN])

    @api.get("/tokens")
    async def tokens() -> TokenList:
        """Who may use the API."""
        found = await database.read(stored.list_tokens)
        return TokenList(
            tokens=[
                TokenView(
                    name=token.name,
                    role=token.role,
                    created_at=moment(token.created_at),
                    used_at=None if token.used_at is None else moment(token.used_at),
                    revoked_at=None if token.revoked_at is None else moment(token.revoked_at),
                )
                for token in found
            ]
        )

    @api.post("/tokens", status_code=201)
    async def add(body: TokenBody, request: Request) -> NewToken:
        """Make a token. It is shown once and stored only as a digest."""
        token = await keyring.add(body.name, body.role)
        note(request, f"{body.name}, {body.role}")
        return NewToken(name=body.name, role=body.role, token=token)

    @api.delete("/tokens/{name}", status_code=204)
    async def revoke(name: Name) -> None:
        """End a token, and with it the sessions that it opened."""
        if not await keyring.revoke(name):
            raise HTTPException(404, f"there is no token {name!r} that is still good")

    @api.get("/audit")
    async def audit(limit: Limit = 100, before: Annotated[int | None, Query(ge=0, le=2**62)] = None) -> AuditPage:
        """Who did what."""
        lines = await database.read(lambda connection: trail.list_audit(connection, limit, before))
        return AuditPage(
            audit=[
                AuditView(
                    id=line.id,
                    at=moment(line.at),
                    who=line.who,
                    address=line.address,
                    action=line.action,
                    target=line.target,
                    detail=line.detail,
                )
                for line in lines
            ],
            next=lines[-1].id if len(lines) == limit else None,
        )

    return api
