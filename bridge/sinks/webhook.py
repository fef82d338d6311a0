"""A sink that posts to a URL, signed as Standard Webhooks (https://www.standardwebhooks.com) has it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import Final, final

import httpx
import msgspec

from bridge.errors import SettingsError
from bridge.sinks.sink import Sink, SinkRefusedError, SinkUnavailableError, envelope
from bridge.storage.committed import Record

_LATER: Final = frozenset((401, 403, 404, 408, 409, 421, 423, 425, 429))
"""4xx answers that somebody can put right without a change of the records: a token, a path, a rate."""

READ_AT_ONCE: Final = 4_096
MAX_ANSWER: Final = 65_536
"""Bytes of an answer that are read: a longer one ends its connection."""


@final
class Webhook(Sink):
    """Posts `{"records": [...]}`. 2xx: taken; 5xx, no answer, and 4xx that are about the sender: again later; any other
    answer: these records are refused.

    Headers: `webhook-id` (the same for the same records), `webhook-timestamp`, and with a secret `webhook-signature`:
    `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.
    """

    def __init__(self, url: str, secret: str | None, timeout: float, clock: Callable[[], float]) -> None:
        """`timeout` in seconds for one request. Raises SettingsError for a URL that is none."""
        if httpx.URL(url).scheme not in ("http", "https"):
            raise SettingsError(f"{url!r} is no http or https URL")
        self._url = url
        self._secret = None if secret is None else secret.encode()
        self._clock = clock
        # What the machine's environment says of proxies is not this process's business (see settings).
        self._timeout = timeout
        self._client = httpx.AsyncClient(timeout=timeout, trust_env=False, follow_redirects=False)

    async def deliver(self, records: Sequence[Record]) -> None:
        """Post the records as one request."""
        body = msgspec.json.encode({"records": [envelope(record) for record in records]})
        name = hashlib.sha256(f"{records[0].key} {records[-1].key} {len(records)}".encode()).hexdigest()[:32]
        headers = {"content-type": "application/json", **self._signed(name, body)}
        answer = b""
        try:
            # httpx counts anew with every byte that comes: one that drips would be waited for without end.
            async with (
                asyncio.timeout(self._timeout),
                self._client.stream("POST", self._url, content=body, headers=headers) as response,
            ):
                async for piece in response.aiter_bytes(READ_AT_ONCE):
                    answer += piece
                    if len(answer) >= MAX_ANSWER:
                        break
        except TimeoutError as error:
            raise SinkUnavailableError(f"{self._url}: not done within {self._timeout:g} s") from error
        except httpx.HTTPError as error:
            raise SinkUnavailableError(f"{self._url}: {str(error) or type(error).__name__}") from error
        if response.is_success:
            return
        text = f"{self._url} answers {response.status_code}: {answer[:200].decode(errors='replace')}"
        if response.is_client_error and response.status_code not in _LATER:
            raise SinkRefusedError(text)
        raise SinkUnavailableError(text)

    def _signed(self, name: str, body: bytes) -> dict[str, str]:
        timestamp = str(int(self._clock()))
        headers = {"webhook-id": name, "webhook-timestamp": timestamp}
        if self._secret is not None:
            digest = hmac.digest(self._secret, f"{name}.{timestamp}.".encode() + body, "sha256")
            headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
        return headers

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()
