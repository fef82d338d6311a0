"""Modes that send as fast as the server acknowledges."""

from __future__ import annotations

import argparse
import select
import time
from collections import deque

from tests.bench import wire
from tests.bench.clients import Client, Fleet, ServerGoneError, full_service, hello
from tests.bench.measure import Result, Window, cpu_seconds, percentiles, say_ready, wait_until_quiet


def bursts(args: argparse.Namespace) -> Result:
    """Each connection sends a burst of QoS 1 messages, waits for all its PUBACKs, and sends the next.

    With `--rate`, bursts are started at that many messages per second in all, as far as connections are free.
    """
    fleet = Fleet(args.port)
    clients = [Client(number) for number in range(args.connections)]
    fleet.open(clients, hello, window=100)
    payloads = list(wire.telemetry(args.burst, time.time()))
    for client in clients:
        client.data = wire.burst(client.topic, payloads)
    expected = wire.burst_acks(args.burst)
    say_ready()
    window = Window(args.seconds, args.until_eof)
    free = deque(clients)
    took: list[float] = []
    acked = counted = 0
    gap = args.burst / args.rate if args.rate else 0.0
    due = time.perf_counter()
    stop_at = None
    while True:
        now = time.perf_counter()
        if stop_at is None and window.over(now):
            stop_at = now
        if stop_at is None:
            while free and due <= now:
                client = free.popleft()
                client.sent_at = now
                fleet.send(client, client.data)
                due = due + gap if gap else now
        elif len(free) == len(clients):
            break
        wait = min(0.05, max(0.0, due - now)) if free and stop_at is None else 1.0 if not gap else 0.05
        for fd, event in fleet.epoll.poll(wait):
            client = fleet.clients[fd]
            if event & select.EPOLLOUT:
                fleet.flush(client)
            if not event & ~select.EPOLLOUT:
                continue
            data = client.sock.recv(65536)
            if not data:
                raise ServerGoneError(f"{client.device_id} was closed")
            now = time.perf_counter()
            if window.begin <= now < window.end:
                counted += len(data) // 4
            client.rest = client.rest + data if client.rest else data
            if len(client.rest) < len(expected):
                continue
            if client.rest != expected:
                raise wire.WireError(f"{client.device_id}: not the PUBACKs of the burst, in order")
            client.rest = b""
            acked += args.burst
            took.append(now - client.sent_at)
            free.append(client)
    seconds = min(window.end, stop_at) - window.begin
    fleet.close()
    return {"rate": counted / seconds, "acked": acked, "burst_latency": percentiles(took)}


def closed(args: argparse.Namespace) -> Result:
    """Every connection sends one QoS 1 message, waits for its PUBACK, and sends the next.

    With `--outstanding`, only that many messages are under way at any moment and the connections take turns: the
    server's work then has the same shape for 100 connections as for 9,000. `--listen` subscribes each first, and with
    `--senders` only that many of them send.
    """
    fleet = Fleet(args.port)
    clients = [Client(number) for number in range(args.connections)]
    opened = fleet.open(clients, full_service if args.listen else hello, window=100)
    acked = opened.served if args.listen else 0
    if opened.served < len(clients):
        raise ServerGoneError(f"only {opened.served} of {len(clients)} connections could be opened")
    for client, payload in zip(clients, wire.telemetry(len(clients), time.time()), strict=True):
        client.data = wire.publish(client.topic, payload, 1)
    ack = wire.puback(1)
    if args.pid:
        wait_until_quiet(args.pid)
    say_ready()
    window = Window(args.seconds, args.until_eof)
    idle = deque(clients[: args.senders or None])
    under_way = 0
    most = args.outstanding or len(idle)
    took: list[float] = []
    cpu_begin = cpu_end = None
    counted = 0
    while True:
        now = time.perf_counter()
        if args.pid and cpu_begin is None and now >= window.begin:
            cpu_begin, counted = cpu_seconds(args.pid), 0
        if not window.over(now):
            while idle and under_way < most:
                client = idle.popleft()
                under_way += 1
                client.sent_at = time.perf_counter()
                fleet.send(client, client.data)
        else:
            if args.pid and cpu_end is None:
                cpu_end, counted_by_cpu = cpu_seconds(args.pid), counted
            if not under_way:
                break
        for fd, event in fleet.epoll.poll(0.05):
            client = fleet.clients[fd]
            if event & select.EPOLLOUT:
                fleet.flush(client)
                continue
            data = client.sock.recv(4096)
            now = time.perf_counter()
            if data != ack or client.rest:
                if not data:
                    raise ServerGoneError(f"{client.device_id} was closed")
                found, client.rest = wire.split(client.rest + data)
                if not any(first == 0x40 for first, _ in found):
                    continue  # something else that the server sends to a device, a ping for example
            acked += 1
            under_way -= 1
            idle.append(client)
            if window.begin <= now < window.end:
                counted += 1
                took.append(now - client.sent_at)
    fleet.close()
    result = {"rate": counted / (window.end - window.begin), "acked": acked, "latency": percentiles(took)}
    if cpu_begin is not None and cpu_end is not None and counted_by_cpu:
        result["cpu_us_per_message"] = (cpu_end - cpu_begin) / counted_by_cpu * 1e6
    return result


def noisy(args: argparse.Namespace) -> Result:
    """One device that sends as fast as the server reads, with up to 20,000 messages unacknowledged."""
    fleet = Fleet(args.port)
    client = Client(99999)
    fleet.open([client], hello, window=1)
    payloads = list(wire.telemetry(100, time.time()))
    chunks = [
        b"".join(wire.publish(client.topic, payload, base + n) for n, payload in enumerate(payloads, 1))
        for base in range(0, 65500, 100)
    ]
    say_ready()
    window = Window(args.seconds, args.until_eof)
    sent = received = turn = 0
    counted_from = None
    while True:
        now = time.perf_counter()
        if counted_from is None and now >= window.begin:
            counted_from = received
        over = window.over(now)
        if over and received == sent * 4:
            break
        while not over and not client.out and sent - received // 4 < 20000:
            fleet.send(client, chunks[turn % len(chunks)])
            turn += 1
            sent += 100
        for _, event in fleet.epoll.poll(0.05):
            if event & select.EPOLLOUT:
                fleet.flush(client)
            if event & ~select.EPOLLOUT:
                data = client.sock.recv(262144)
                if not data:
                    raise ServerGoneError("the noisy device was closed")
                received += len(data)
    seconds = time.perf_counter() - window.begin
    fleet.close()
    return {"rate": (received - (counted_from or 0)) / 4 / seconds, "acked": received // 4}
