"""Binding a port, with an error that says who has it already."""

from __future__ import annotations

import errno
import ipaddress
import socket
from pathlib import Path

from bridge.errors import StartError

BACKLOG = 4096


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int, setting: str) -> socket.socket:
    """A listening TCP socket. `setting` is the environment variable that chooses the port.

    Raises StartError that says who has the port, if that can be seen, and what to change.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            holder = holder_of(port)
            by = f" by {holder}" if holder else ""
            raise StartError(
                f"port {port} on {host} is taken{by}: stop that, or choose another port with {setting}"
            ) from error
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}; see {setting}") from error
    listener.setblocking(False)
    return listener


def holder_of(port: int) -> str | None:
    """The process that listens on a TCP port, as `name (pid N)`; None where that cannot be seen (other systems than
    Linux, or another user's process)."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for descriptor in (process / "fd").iterdir():
                if str(descriptor.readlink()) in inodes:
                    return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:
            continue  # another user's process, or one that has just ended
    return None


def _listening_inodes(port: int) -> set[str]:
    listening = "0A"
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == listening and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    return inodes
