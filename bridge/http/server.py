"""uvicorn on the bridge's own event loop, on a socket that is bound before anything else starts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence
from typing import Final, final

import uvicorn
from fastapi import FastAPI

GRACE: Final = 2
"""Seconds that open requests get when the bridge stops."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # SIGTERM and SIGINT belong to the whole process: the app stops its parts in order.
        yield


@final
class HttpServer:
    """Serves an app on `listener`, which the caller has bound. `proxies`: addresses of reverse proxies, which are
    believed when they say whom they speak for and whether by TLS."""

    def __init__(self, app: FastAPI, listener: socket.socket, proxies: Sequence[str] = ()) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=bool(proxies),
            forwarded_allow_ips=list(proxies),
            server_header=False,
            timeout_graceful_shutdown=GRACE,
        )
        self._server = _Server(config)
        self._listener = listener
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        port: int = self._listener.getsockname()[1]
        return port

    def start(self) -> asyncio.Task[None]:
        """Serve in a task, which the caller watches: it ends only when the server has stopped or failed."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]), name="http")
        return self._task

    async def stop(self) -> None:
        """Let open requests finish for a moment, then close."""
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.wait([self._task])
