"""Simulated devices in a process of their own, which write down every message that was acknowledged to them.

`python -m tests.faults.devices PORT LOG ...`. Nothing in here knows the bridge: sockets, bytes, and a file. Each device
sends numbered readings with QoS 1, `window` of them ahead of their acknowledgements, and after a broken connection
sends again what was not acknowledged, as the standard says [MQTT-4.4.0-1]. A line is written after an acknowledgement
has been read, never before, so the file claims nothing that the bridge has not promised.

Told by lines on standard input: `drop` (every connection is cut, and comes back), `stop` (nothing new; the process ends
when all is acknowledged), `quit` (ends at once). The last line of standard output says what was sent.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from tests.bench import wire

HOST: Final = "127.0.0.1"
RETRY: Final = 0.05
"""Seconds from a broken connection to the next one."""
TURN: Final = 0.01
"""Seconds between two looks at what is due."""
DUP: Final = 0x08
PACKET_IDS: Final = 65_535


def message_id(device: str, number: int) -> str:
    """The id of a device's message."""
    return f"{device}-{number}"


class Device:
    """One device and its connection."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.sent = 0
        self.unacknowledged: deque[int] = deque()
        self.connected = False
        self.connects = 0
        self.disordered = 0
        """Acknowledgements that did not come in the order of their messages [MQTT-4.6.0-2]."""
        self.sock: socket.socket | None = None
        self.retry_at = 0.0
        self.out = bytearray()
        self._address = (HOST, port)
        self._topic = f"devices/{name}/telemetry"
        self._rest = b""

    def connect(self) -> int | None:
        """Begin to connect; the descriptor to watch."""
        sock = socket.socket()
        sock.setblocking(False)
        if sock.connect_ex(self._address) not in (0, errno.EINPROGRESS):
            sock.close()
            self.retry_at = time.monotonic() + RETRY
            return None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._rest = b""
        self.out = bytearray(wire.connect(self.name))
        return sock.fileno()

    def close(self) -> None:
        """The connection is gone; what was not acknowledged is still to be sent."""
        if self.sock is not None:
            self.sock.close()
        self.sock = None
        self.connected = False
        self.retry_at = time.monotonic() + RETRY

    def send_new(self) -> None:
        """Send the next reading."""
        self.out += self._publish(self.sent)
        self.unacknowledged.append(self.sent)
        self.sent += 1

    def flush(self) -> None:
        """Write what the socket takes. Raises OSError when the connection is gone."""
        while self.out and self.sock is not None:
            try:
                del self.out[: self.sock.send(self.out)]
            except BlockingIOError:
                return

    def receive(self) -> list[int]:
        """The numbers of the messages that have just been acknowledged. Raises OSError when the connection is gone."""
        assert self.sock is not None
        try:
            data = self.sock.recv(262_144)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError
        acknowledged = []
        packets, self._rest = wire.split(self._rest + data)
        for first, body in packets:
            wire.check_granted(first, body)
            if first >> 4 == wire.CONNACK:
                self.connected = True
                self.connects += 1
                for number in self.unacknowledged:
                    again = self._publish(number)
                    again[0] |= DUP
                    self.out += again
            elif first >> 4 == wire.PUBACK:
                acknowledged.append(self._number(int.from_bytes(body, "big")))
        return acknowledged

    def _number(self, packet_id: int) -> int:
        if self.unacknowledged and self.unacknowledged[0] % PACKET_IDS + 1 == packet_id:
            return self.unacknowledged.popleft()
        self.disordered += 1
        number = next(number for number in self.unacknowledged if number % PACKET_IDS + 1 == packet_id)
        self.unacknowledged.remove(number)
        return number

    def _publish(self, number: int) -> bytearray:
        payload = f'{{"id":"{message_id(self.name, number)}","n":{number},"temperature":{18 + number % 90 / 10}}}'
        return bytearray(wire.publish(self._topic, payload.encode(), number % PACKET_IDS + 1))


class Fleet:
    """All devices, on one thread."""

    def __init__(self, devices: list[Device], log: BinaryIO, rate: float, window: int) -> None:
        self._devices = devices
        self._log = log
        self._rate = rate
        self._window = window
        self._epoll = select.epoll()
        self._by_fd: dict[int, Device] = {}
        self._stopping = False
        self._began = time.monotonic()
        self._sent = 0
        self._turn = 0

    def run(self) -> None:
        """Until `stop` and everything is acknowledged, or `quit`, or the end of standard input."""
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        while not (self._stopping and not any(device.unacknowledged for device in self._devices)):
            self._connect()
            lines = []
            for fd, _ in self._epoll.poll(TURN):
                if fd == sys.stdin.fileno():
                    if not self._obey(os.read(fd, 4096).decode().split()):
                        return
                    continue
                device = self._by_fd.get(fd)
                if device is None:
                    continue
                try:
                    numbers = device.receive()
                except OSError:
                    self._close(device)
                    continue
                now = time.monotonic()
                lines += [f"{now:.4f} {message_id(device.name, number)}\n" for number in numbers]
            if lines:
                self._log.write("".join(lines).encode())
            self._send()

    def _obey(self, orders: list[str]) -> bool:
        for order in orders:
            if order == "drop":
                for device in self._devices:
                    self._close(device)
            elif order == "stop":
                self._stopping = True
        if orders:
            return "quit" not in orders
        # The end of the input: nobody is there any more, unless it was said before to come to an end.
        self._epoll.unregister(sys.stdin.fileno())
        return self._stopping

    def _connect(self) -> None:
        now = time.monotonic()
        for device in self._devices:
            if device.sock is None and device.retry_at <= now and (fd := device.connect()) is not None:
                self._by_fd[fd] = device
                self._epoll.register(fd, select.EPOLLIN)

    def _close(self, device: Device) -> None:
        if device.sock is not None:
            del self._by_fd[device.sock.fileno()]
        device.close()

    def _send(self) -> None:
        due = len(self._devices) * self._window
        if self._rate:
            due = int((time.monotonic() - self._began) * self._rate) - self._sent
        idle = 0
        while due > 0 and idle < len(self._devices) and not self._stopping:
            # One message each in turn, so that no device is ahead of the others.
            device = self._devices[self._turn % len(self._devices)]
            self._turn += 1
            if device.connected and len(device.unacknowledged) < self._window:
                device.send_new()
                due -= 1
                self._sent += 1
                idle = 0
            else:
                idle += 1
        if self._rate and due > 0:
            # What found no room is not made up for later: a rate, not a backlog.
            self._sent += due
        for device in list(self._by_fd.values()):
            try:
                device.flush()
            except OSError as error:
                if error.errno != errno.ENOTCONN:  # still connecting
                    self._close(device)


def main() -> NoReturn:
    """Run the devices that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("log", type=Path)
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--rate", type=float, default=0.0, help="messages per second of all; 0: as acknowledged")
    parser.add_argument("--window", type=int, default=50)
    parser.add_argument("--prefix", default="device")
    given = parser.parse_args()
    devices = [Device(f"{given.prefix}-{number}", given.port) for number in range(given.devices)]
    # Unbuffered: what has been read here is in the kernel's hands before anything else happens.
    with given.log.open("ab", buffering=0) as log:
        Fleet(devices, log, given.rate, given.window).run()
    summary = {
        "sent": sum(device.sent for device in devices),
        "unacknowledged": sum(len(device.unacknowledged) for device in devices),
        "connects": sum(device.connects for device in devices),
        "disordered": sum(device.disordered for device in devices),
    }
    print(json.dumps(summary), flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
