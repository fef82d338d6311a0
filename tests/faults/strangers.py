"""Clients that are no devices: they say nothing, or nonsense, or never read."""

from __future__ import annotations

import contextlib
import select
import socket
from types import TracebackType
from typing import Self

from tests.bench import wire
from tests.servers import HOST


class Stranger:
    """A blocking connection; a context manager."""

    def __init__(self, port: int, *, receive_buffer: int = 0) -> None:
        self._socket = socket.socket()
        if receive_buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(30.0)
        self._socket.connect((HOST, port))
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes, whatever they are."""
        self._socket.sendall(data)

    def expect(self, kind: int) -> bytes:
        """The body of the next packet of this kind; other packets before it are passed over."""
        while True:
            packets, self._rest = wire.split(self._rest)
            for position, (first, body) in enumerate(packets):
                if first >> 4 == kind:
                    wire.check_granted(first, body)
                    assert position == len(packets) - 1, "more has come than was asked for"
                    return body
            data = self._socket.recv(65_536)
            assert data, "the connection was closed"
            self._rest += data

    def first(self, size: int) -> bytes:
        """The first bytes that come, whatever they say; fewer if the other side closes."""
        while len(self._rest) < size and (data := self._socket.recv(65_536)):
            self._rest += data
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

    def readable(self) -> bool:
        """Whether something has come that is not read yet."""
        return bool(self._rest or select.select([self._socket], [], [], 0.0)[0])

    def rest(self) -> bytes:
        """What comes before the other side closes."""
        found, self._rest = self._rest, b""
        with contextlib.suppress(ConnectionResetError):
            while data := self._socket.recv(65_536):
                found += data
        return found

    def closed_by_peer(self) -> bool:
        """Whether the other side closes; waits for it, and passes over what comes before."""
        try:
            while self._socket.recv(65_536):
                pass
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
        return True
