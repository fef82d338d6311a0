"""Many MQTT connections in one thread: plain non-blocking sockets on one epoll, nothing between them and the bytes.

An event loop with protocols would cost several microseconds per message and make the generator the thing that is
measured; here a burst costs one `send` and one or two `recv`.
"""

from __future__ import annotations

import errno
import resource
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from tests.bench import wire

HOST: Final = "127.0.0.1"
RETRY_AFTER: Final = 0.1
"""Seconds until a refused or reset connection is tried again while a fleet is opening."""

_RESET = struct.pack("ii", 1, 0)


class ServerGoneError(ConnectionError):
    """The server closed a connection."""


class Client:
    """One connection that speaks for one device."""

    __slots__ = (
        "_steps",
        "_waiting",
        "data",
        "device_id",
        "fd",
        "number",
        "out",
        "rest",
        "sent_at",
        "served",
        "sock",
        "topic",
    )

    def __init__(self, number: int, prefix: str = "bench") -> None:
        self.number = number
        self.device_id = f"{prefix}-{number:05d}"  # of one length, so that all packets are
        self.topic = f"devices/{self.device_id}/telemetry"
        self.sock: socket.socket
        self.fd = -1
        self.out = b""
        """What the socket has not taken yet."""
        self.rest = b""
        """Received bytes that are not a whole packet yet."""
        self.data = b""
        """The bytes that a measurement sends again and again."""
        self.sent_at = 0.0
        self.served = False
        self._steps: deque[Step] = deque()
        self._waiting: set[int] = set()


@dataclass(frozen=True, slots=True)
class Step:
    """Bytes to send, and the types of the packets that must have come before the next step."""

    data: bytes
    answers: frozenset[int]


Script = Callable[[Client], list[Step]]


def hello(client: Client) -> list[Step]:
    """Connect."""
    return [Step(wire.connect(client.device_id), frozenset({wire.CONNACK}))]


def hello_and_listen(client: Client) -> list[Step]:
    """Connect, and subscribe to the device's command topic."""
    listen = wire.subscribe(1, f"devices/{client.device_id}/command/request")
    return [*hello(client), Step(listen, frozenset({wire.SUBACK}))]


def full_service(client: Client) -> list[Step]:
    """Connect, subscribe, and have one reading acknowledged: all that a device needs."""
    payload = next(wire.telemetry(1, time.time()))
    both = wire.subscribe(1, f"devices/{client.device_id}/command/request") + wire.publish(client.topic, payload, 2)
    return [*hello(client), Step(both, frozenset({wire.SUBACK, wire.PUBACK}))]


@dataclass(slots=True)
class Opened:
    """How the opening of many connections went: seconds in all, connections served, attempts that were refused."""

    seconds: float
    served: int
    refused: int


def raise_file_limit() -> int:
    """Lift the soft open-file limit to the hard one, for this process and its children; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Fleet:
    """The connections of one generator process."""

    def __init__(self, port: int) -> None:
        self.address = (HOST, port)
        self.epoll = select.epoll()
        self.clients: dict[int, Client] = {}

    # opening and closing

    def open(self, clients: Iterable[Client], script: Script, *, window: int, timeout: float = 60.0) -> Opened:
        """Run `script` on every client, at most `window` at a time; an attempt that fails is made again.

        Stops after `timeout` seconds with those that are served by then.
        """
        todo = deque(clients)
        total, served, refused = len(todo), 0, 0
        again: deque[tuple[float, Client]] = deque()
        busy = 0
        begin = time.perf_counter()
        deadline = begin + timeout
        while served < total and (now := time.perf_counter()) < deadline:
            while again and again[0][0] <= now:
                todo.append(again.popleft()[1])
            while todo and busy < window:
                client = todo.popleft()
                client._steps = deque(script(client))
                client._waiting = set()
                client.served = False
                self._dial(client)
                busy += 1
            for fd, event in self.epoll.poll(0.05):
                client = self.clients[fd]
                try:
                    done = self._advance(client, event)
                except OSError:  # refused or reset: a device tries again
                    self._forget(client)
                    refused += 1
                    if client.served:
                        served -= 1
                    else:
                        busy -= 1
                    again.append((time.perf_counter() + RETRY_AFTER, client))
                    continue
                if done:
                    client.served = True
                    served += 1
                    busy -= 1
        return Opened(time.perf_counter() - begin, served, refused)

    def _dial(self, client: Client) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = sock.connect_ex(self.address)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, f"cannot connect to {self.address}")
        client.sock, client.fd, client.out, client.rest = sock, sock.fileno(), b"", b""
        self.clients[client.fd] = client
        self.epoll.register(client.fd, select.EPOLLOUT)

    def _advance(self, client: Client, event: int) -> bool:
        """One step of a client's script; True when it has just finished."""
        if event & select.EPOLLOUT and not client._waiting and client._steps:
            self.epoll.modify(client.fd, select.EPOLLIN)
            self._next_step(client)
        elif event & select.EPOLLOUT:
            self.flush(client)
        if not event & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return False
        for first, body in self.packets(client):
            wire.check_granted(first, body)
            client._waiting.discard(first >> 4)
        if client._waiting:
            return False
        if client._steps:
            self._next_step(client)
            return False
        return not client.served

    def _next_step(self, client: Client) -> None:
        step = client._steps.popleft()
        client._waiting = set(step.answers)
        self.send(client, step.data)

    def _forget(self, client: Client) -> None:
        del self.clients[client.fd]
        client.sock.close()  # leaves the epoll set by itself

    def close(self, *, reset: bool = False) -> None:
        """End all connections: with DISCONNECT, or with `reset` as if the network had gone."""
        for client in list(self.clients.values()):
            if reset:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            else:
                self.send(client, wire.DISCONNECT_PACKET)
            self._forget(client)

    # sending and receiving

    def send(self, client: Client, data: bytes) -> None:
        """Send now what the socket takes, and the rest when epoll says so (the caller passes EPOLLOUT to `flush`)."""
        if client.out:
            client.out += data
            return
        try:
            taken = client.sock.send(data)
        except BlockingIOError:
            taken = 0
        if taken < len(data):
            client.out = data[taken:]
            self.epoll.modify(client.fd, select.EPOLLIN | select.EPOLLOUT)

    def flush(self, client: Client) -> None:
        """Send more of what is waiting."""
        if client.out:
            taken = client.sock.send(client.out)
            client.out = client.out[taken:]
        if not client.out:
            self.epoll.modify(client.fd, select.EPOLLIN)

    def packets(self, client: Client) -> list[tuple[int, bytes]]:
        """The whole packets that have come for a client, as (first byte, body)."""
        data = client.sock.recv(65536)
        if not data:
            raise ServerGoneError(f"{client.device_id}: the server closed the connection")
        found, client.rest = wire.split(client.rest + data if client.rest else data)
        return found
