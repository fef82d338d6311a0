"""The least server there can be: acknowledges QoS 1 messages of one length and does nothing else.

What the generator reaches against it is the generator's own ceiling (`python -m tests.bench.run ceiling`).
`python -m tests.bench.acker PORT`, ends with SIGTERM.
"""

from __future__ import annotations

import select
import socket
import sys

from tests.bench import wire
from tests.bench.clients import HOST, raise_file_limit


def acks_for(data: bytes, size: int, id_at: int) -> bytes:
    """PUBACKs for the PUBLISH packets in `data`, each `size` bytes long with its packet id at offset `id_at`.

    By strided slices, so that the cost per message is a few nanoseconds.
    """
    count = len(data) // size
    out = bytearray(b"\x40\x02\x00\x00" * count)
    out[2::4] = data[id_at::size]
    out[3::4] = data[id_at + 1 :: size]
    return bytes(out)


class _Peer:
    __slots__ = ("id_at", "rest", "size", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.rest = b""
        self.size = 0
        self.id_at = 0

    def receive(self) -> bool:
        data = self.sock.recv(262144)
        if not data:
            return False
        data = self.rest + data if self.rest else data
        if self.size and data[0] == 0x32:
            whole = len(data) // self.size * self.size
            self.rest = data[whole:]
            if whole:
                self.sock.sendall(acks_for(data[:whole], self.size, self.id_at))
            return True
        packets, self.rest = wire.split(data)
        out = b""
        for first, body in packets:
            match first >> 4:
                case 1:
                    out += b"\x20\x02\x00\x00"
                case 8:
                    out += b"\x90\x03" + body[:2] + b"\x01"
                case 12:
                    out += b"\xd0\x00"
                case 3:
                    out += wire.puback(wire.received(first, body)[2])
                    self.size = len(body) + 2
                    self.id_at = 4 + int.from_bytes(body[:2], "big")
        if out:
            self.sock.sendall(out)
        return True


def main(port: int) -> None:
    """Serve until killed."""
    raise_file_limit()
    listener = socket.create_server((HOST, port), backlog=4096)
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    peers: dict[int, _Peer] = {}
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peers[sock.fileno()] = _Peer(sock)
                epoll.register(sock.fileno(), select.EPOLLIN)
                continue
            try:
                alive = peers[fd].receive()
            except ConnectionError:
                alive = False
            if not alive:
                peers.pop(fd).sock.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
