"""A receiver of webhooks: a real HTTP server that takes, refuses or fails as the test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class Receiver:
    """What has come; `answer` says with which status a request is answered, given its records."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.records: list[dict[str, Any]] = []
        """Of the requests that were answered with 200."""
        self.answer: Callable[[list[dict[str, Any]]], int] = lambda records: 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                records = json.loads(body)["records"]
                receiver.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
                status = receiver.answer(records)
                if status == 200:
                    receiver.records += records
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                """A client that hangs up is no fault."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/hook"

    @property
    def values(self) -> list[Any]:
        """The `n` of the readings that were taken."""
        return [record["data"]["n"] for record in self.records]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
