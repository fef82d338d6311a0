"""The bridge's API as the operator's commands use it."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self, final
from urllib.parse import quote

import httpx

from bridge.commands import CommandStatus
from bridge.errors import BridgeError
from bridge.settings import Settings

WAIT: Final = 20.0
"""Seconds that one question about a command waits for news."""
PAGE: Final = 1000

Step = dict[str, Any]


def connect(url: str | None, token: str | None) -> Api:
    """The API at `url`; without one, that of the bridge whose settings apply here, with its token."""
    if url is None:
        http = Settings.load().http
        if token is None and http.token is not None:
            token = http.token.get_secret_value()
        url = f"http://{bracketed(reachable(http.host))}:{http.port}"
    return Api(url, token)


def reachable(host: str) -> str:
    """The address by which this machine reaches what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, not listened on


def bracketed(host: str) -> str:
    """`host` as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


@final
class Api:
    """One bridge's API; a context manager. Every method raises BridgeError with what the bridge said."""

    def __init__(self, url: str, token: str | None, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        try:
            self._client = httpx.Client(
                base_url=f"{self.url}/api/v1",
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=httpx.Timeout(15.0, read=WAIT + 15.0),
                transport=transport,
            )
        except (httpx.InvalidURL, UnicodeError) as error:
            raise BridgeError(f"{url!r} is no URL of a bridge: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def devices(self, limit: int) -> Iterator[dict[str, Any]]:
        """The first `limit` devices in the order of their ids."""
        after = ""
        while limit > 0:
            page = self._ask("GET", "/devices", params={"limit": min(limit, PAGE), "after": after})
            yield from page["devices"]
            limit -= len(page["devices"])
            after = page["next"]
            if after is None:
                return

    def dead_letters(self, limit: int) -> list[dict[str, Any]]:
        """The latest dead letters."""
        found: list[dict[str, Any]] = self._ask("GET", "/dead-letters", params={"limit": limit})["dead_letters"]
        return found

    def send(self, device_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Store a command; the command as it stands then."""
        return self._ask("POST", f"/devices/{quote(device_id, safe='')}/commands", json=body)

    def follow(self, command_id: str) -> Iterator[tuple[dict[str, Any], list[Step]]]:
        """The command with its new steps, as often as there are some, until it is done."""
        after = 0
        while True:
            found = self._ask("GET", f"/commands/{command_id}", params={"wait": WAIT, "after_seq": after})
            command, steps = found["command"], found["events"]
            yield command, steps
            if CommandStatus(command["status"]).final:
                return
            after = max((step["seq"] for step in steps), default=after)

    def _ask(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, **content)
        except httpx.ConnectError as error:
            raise BridgeError(
                f"no bridge answers at {self.url} ({error}): is it running? BRIDGE_URL says where another one is"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise BridgeError(f"{self.url} does not answer: {str(error) or type(error).__name__}") from error
        if response.is_success:
            try:
                answer: dict[str, Any] = response.json()
            except ValueError as error:
                raise BridgeError(f"what answers at {self.url} is not a bridge") from error
            return answer
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise BridgeError(f"{self.url} wants its token: set BRIDGE_TOKEN to what the bridge has as http.token")
        raise BridgeError(_detail(response))


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{response.request.url} answers {response.status_code} {response.reason_phrase}"
