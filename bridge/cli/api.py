"""The running bridge's HTTP API, as the operator's commands call it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from bridge.cli.target import reachable
from bridge.errors import BridgeError

if TYPE_CHECKING:
    import httpx

    from bridge.settings import Settings

# httpx has a command line of its own, and imports it, with all that draws it, where it is installed: that took longer
# than everything else that a short command of ours does. Without it httpx is the same to us.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # Python's own way to say: not to be imported

TIMEOUT: Final = 15.0
"""Seconds for one answer, beyond what the bridge was asked to wait."""


class ApiError(BridgeError):
    """The bridge does not answer, or refuses what was asked."""


class Api:
    """JSON documents, to the bridge and from it."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, parameters: Mapping[str, Any] | None = None, wait: float = 0.0) -> Any:
        """The document at `path`; `wait`: seconds that the bridge was asked to wait. Raises ApiError."""
        return self._call("GET", path, params=parameters, timeout=TIMEOUT + wait)

    def post(self, path: str, body: Any) -> Any:
        """The answer to `body`. Raises ApiError."""
        return self._call("POST", path, json=body)

    def call(self, method: str, path: str, body: Any = None, wait: float = 0.0) -> Any:
        """The answer to any other method, None if there is none; `wait`: seconds that it may take longer than usual.
        Raises ApiError."""
        return self._call(method, path, json=body, timeout=TIMEOUT + wait)

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        import httpx

        url = self._client.base_url
        try:
            response = self._client.request(method, path, **arguments)
            document = response.json() if response.content else None
        except httpx.ConnectError as error:
            raise ApiError(
                f"no bridge answers at {url}: {error}. Is it running (`mqtt-bridge serve`)? BRIDGE_URL says where it is"
            ) from error
        except httpx.HTTPError as error:
            raise ApiError(f"{url}: {type(error).__name__} {error}") from error
        except ValueError as error:
            raise ApiError(f"{url} (BRIDGE_URL) answers {response.status_code} without JSON: no bridge?") from error
        if response.is_error:
            detail = document.get("detail", document) if isinstance(document, dict) else document
            raise ApiError(f"{detail}{self._hint(response.status_code)}")
        return document

    def _hint(self, status: int) -> str:
        """What to do about an answer that is a refusal of the caller."""
        shown = "authorization" in self._client.headers
        if status == 401 and shown:
            return ": the token in BRIDGE_TOKEN is wrong or revoked; `mqtt-bridge tokens list` shows the good ones"
        if status == 401:
            return ": set BRIDGE_TOKEN; `mqtt-bridge tokens add NAME` on the bridge's machine makes a token"
        return ": the role of the token in BRIDGE_TOKEN does not suffice" if status == 403 and shown else ""


@contextmanager
def connect() -> Iterator[Api]:
    """The API at BRIDGE_URL with BRIDGE_TOKEN; without BRIDGE_URL that of the bridge with this machine's settings."""
    import httpx

    url, token = os.environ.get("BRIDGE_URL"), os.environ.get("BRIDGE_TOKEN")
    if not url:
        from bridge.settings import Settings

        settings = Settings.load()
        url = base_url(settings)
        if not token and settings.http.token is not None:
            token = settings.http.token.get_secret_value()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        # Not by way of a proxy that the environment names for the internet: a bridge is on this machine or near.
        client = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=TIMEOUT,
            trust_env=False,
            verify=not url.startswith("http://"),  # certificates are read only where there are any to check
        )
    except (httpx.InvalidURL, ValueError) as error:
        raise ApiError(f"BRIDGE_URL {url!r}: {error}") from error
    with client:
        yield Api(client)


def base_url(settings: Settings, port: int | None = None) -> str:
    """Where a bridge with these settings answers on this machine; `port`, if it chose one itself."""
    host = reachable(settings.http.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.http.port if port is None else port}"
