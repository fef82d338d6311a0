"""A browser's session: log in with a token, log out, and who am I."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from fastapi import APIRouter, Request, Response
from pydantic import Field

from bridge.http import problems
from bridge.http.access import COOKIE, Access, Caller, address_of
from bridge.http.audit import Audit
from bridge.http.models import Model, moment
from bridge.tokens import Role


class LoginBody(Model):
    """What a browser logs in with."""

    token: str = Field(min_length=1, max_length=200, examples=["mab_0Y1c…"])


class SessionView(Model):
    """Who is calling."""

    name: str = Field(description="The token's name; `local` where no token is needed.", examples=["admin"])
    role: Role
    token_required: bool = Field(description="Whether there is something to log in to.")
    expires_at: datetime | None = Field(None, description="When a session that was just opened ends.")


def routes(access: Access, audit: Audit, clock: Callable[[], float]) -> APIRouter:
    """`/session`: the only operations below `/api/v1` that ask for no token."""
    api = APIRouter(tags=["access"], responses=problems.RESPONSES)

    def view(who: Caller) -> SessionView:
        return SessionView(name=who.name, role=who.role, token_required=access.required)

    @api.get("/session")
    async def who_am_i(request: Request) -> SessionView:
        """Who is calling, by token or cookie. 401 when that is not known: then there is a login to show."""
        return view(await access.identify(request))

    @api.post("/session")
    async def login(request: Request, response: Response, body: LoginBody) -> SessionView:
        """Open a session with a token. The cookie goes to this host only, is not for scripts, and is not sent with
        requests that come from other sites."""
        who = await access.login(body.token, address_of(request))
        now = clock()
        secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
        response.set_cookie(
            COOKIE,
            access.sessions.open(who.name, now),
            max_age=int(access.sessions.lifetime),
            path="/",
            httponly=True,
            samesite="strict",
            secure=secure,
        )
        audit.record(who, "login", who.name)
        return view(who).model_copy(update={"expires_at": moment(now + access.sessions.lifetime)})

    @api.delete("/session", status_code=204)
    async def logout(request: Request, response: Response) -> None:
        """End the session; done also when there is none."""
        who = await access.visitor(request)
        session_id = request.cookies.get(COOKIE)
        if session_id is not None:
            access.sessions.close(session_id)
            response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        if who is not None:
            audit.record(who, "logout", who.name)

    return api
