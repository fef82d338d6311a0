"""Modes about many devices: how fast they connect, what they cost, and how they come back."""

from __future__ import annotations

import argparse
import time

from tests.bench.clients import Client, Fleet, full_service, hello_and_listen
from tests.bench.measure import Result, resident_bytes, say_ready


def connects(args: argparse.Namespace) -> Result:
    """Connect and subscribe all devices, a hundred at a time."""
    fleet = Fleet(args.port)
    opened = fleet.open((Client(n) for n in range(args.connections)), hello_and_listen, window=args.window)
    fleet.close()
    return {"rate": opened.served / opened.seconds, "served": opened.served, "refused": opened.refused, "acked": 0}


def memory(args: argparse.Namespace) -> Result:
    """Resident memory of the server `--pid` for each device that is connected, subscribed and has sent a message.

    The first 200 devices are not counted: they pay for what the server allocates once.
    """
    fleet = Fleet(args.port)
    first, rest = min(200, args.connections // 2), args.connections
    fleet.open([Client(n) for n in range(first)], full_service, window=100)
    time.sleep(1.0)  # what the server does after its last answer also costs memory
    before = resident_bytes(args.pid)
    opened = fleet.open([Client(n) for n in range(first, rest)], full_service, window=100)
    time.sleep(1.0)
    after = resident_bytes(args.pid)
    fleet.close()
    per_device = (after - before) / (rest - first)
    return {"bytes_per_device": per_device, "total": after, "acked": first + opened.served}


def storm(args: argparse.Namespace) -> Result:
    """All devices are connected and served, vanish without DISCONNECT, and come back at once.

    Served means: connected, subscribed, and one new reading acknowledged.
    """
    fleet = Fleet(args.port)
    clients = [Client(number) for number in range(args.connections)]
    before = fleet.open(clients, full_service, window=100)
    say_ready()
    fleet.close(reset=True)
    after = fleet.open(clients, full_service, window=len(clients), timeout=args.seconds)
    fleet.close()
    return {
        "seconds": after.seconds,
        "served": after.served,
        "refused": after.refused,
        "acked": before.served + after.served,
    }
