"""Modes that send at a steady pace and ask how long the answers take."""

from __future__ import annotations

import argparse
import json
import select
import time
from collections import deque

from tests.bench import wire
from tests.bench.clients import Client, Fleet, ServerGoneError, hello, hello_and_listen
from tests.bench.measure import Result, Window, input_closed, percentiles, say_ready


def _wait(due: float, window: Window) -> float:
    """Seconds to wait for answers before the next message is due."""
    now = time.perf_counter()
    return 0.05 if window.over(now) else min(0.05, max(0.0, due - now))


def paced(args: argparse.Namespace) -> Result:
    """Every connection sends one QoS 1 message per period, answered or not, evenly spread: time to PUBACK."""
    fleet = Fleet(args.port)
    clients = [Client(number) for number in range(args.connections)]
    fleet.open(clients, hello, window=100)
    payload = next(wire.telemetry(1, time.time()))
    say_ready()
    window = Window(args.seconds, args.until_eof)
    sent: dict[tuple[int, int], float] = {}
    gap = 1.0 / (args.rate or len(clients))
    due, turn, acked = time.perf_counter(), 0, 0
    took: list[float] = []
    give_up = None
    while True:
        now = time.perf_counter()
        if window.over(now):
            give_up = give_up or now + 10.0
            if not sent or now > give_up:
                break
        else:
            while due <= now:
                client, packet_id = clients[turn % len(clients)], turn // len(clients) % 65535 + 1
                turn += 1
                due += gap
                sent[client.fd, packet_id] = time.perf_counter()
                fleet.send(client, wire.publish(client.topic, payload, packet_id))
        for fd, event in fleet.epoll.poll(_wait(due, window)):
            client = fleet.clients[fd]
            if event & select.EPOLLOUT:
                fleet.flush(client)
                continue
            packets = fleet.packets(client)
            now = time.perf_counter()
            for first, body in packets:
                if first == 0x40:
                    begun = sent.pop((fd, int.from_bytes(body, "big")))
                    acked += 1
                    if begun >= window.begin:
                        took.append(now - begun)
    fleet.close()
    return {"latency": percentiles(took), "acked": acked, "unanswered": len(sent), "sent": turn}


def probe(args: argparse.Namespace) -> Result:
    """PINGREQ every 10 ms until standard input is closed: what a bystander feels of the server's event loop."""
    fleet = Fleet(args.port)
    client = Client(99998)
    fleet.open([client], hello, window=1)
    say_ready()
    took: list[float] = []
    while not input_closed():
        begun = time.perf_counter()
        fleet.send(client, wire.PINGREQ_PACKET)
        while not fleet.epoll.poll(1.0):
            pass
        if not client.sock.recv(4096):
            raise ServerGoneError("the bystander was closed")
        took.append(time.perf_counter() - begun)
        time.sleep(0.01)
    fleet.close()
    return {"latency": percentiles(took), "acked": 0}


def commands(args: argparse.Namespace) -> Result:
    """An operator commands devices at `--rate` a second: time until it sees the status `succeeded`.

    Each device has one command at a time; a command that cannot be sent for that reason is counted as late.
    With `--direct` the operator publishes the request itself and waits for the device's response, which is all that
    a plain broker can do: nothing is stored, and no deadline is kept.
    """
    fleet = Fleet(args.port)
    devices = {client.device_id: client for client in (Client(n, "target") for n in range(args.connections))}
    fleet.open(devices.values(), hello_and_listen, window=100)
    operator = Client(0, "operator")
    fleet.open([operator], hello, window=1)
    send_to, answered_on = ("command/request", "command/response") if args.direct else ("command", "command/status")
    fleet.send(operator, wire.subscribe(1, f"devices/+/{answered_on}"))
    say_ready()
    window = Window(args.seconds, until_eof=False)
    sent: dict[str, float] = {}
    waiting = deque(devices)
    took: list[float] = []
    late = failed = number = 0
    gap, due = 1.0 / args.rate, time.perf_counter() + 0.1
    while True:
        now = time.perf_counter()
        if now >= window.end and (not sent or now >= window.end + 5.0):
            break
        while due <= now < window.end:
            due += gap
            if not waiting:
                late += 1
                continue
            device_id = waiting.popleft()
            number += 1
            command = {"id": f"bench-{window.begin:.0f}-{number}", "name": "set_level", "args": {"level": number % 10}}
            topic = f"devices/{device_id}/{send_to}"
            sent[device_id] = time.perf_counter()
            fleet.send(operator, wire.publish(topic, json.dumps(command).encode(), number % 65534 + 2))
        for fd, event in fleet.epoll.poll(_wait(due, window)):
            client = fleet.clients[fd]
            if event & select.EPOLLOUT:
                fleet.flush(client)
            if not event & ~select.EPOLLOUT:
                continue
            for first, body in fleet.packets(client):
                if first >> 4 != wire.PUBLISH:
                    wire.check_granted(first, body)
                    continue
                topic, payload, packet_id = wire.received(first, body)
                if packet_id:
                    fleet.send(client, wire.puback(packet_id))
                if client is not operator:
                    answer = {"id": json.loads(payload)["id"], "status": "succeeded", "result": {"level": 7}}
                    reply_to = f"devices/{client.device_id}/command/response"
                    fleet.send(client, wire.publish(reply_to, json.dumps(answer).encode(), 1))
                    continue
                status = json.loads(payload)["status"]
                device_id = topic.split("/")[1]
                if status not in ("succeeded", "failed", "expired", "cancelled") or device_id not in sent:
                    continue
                begun = sent.pop(device_id)
                waiting.append(device_id)
                if status != "succeeded":
                    failed += 1
                elif begun >= window.begin:
                    took.append(time.perf_counter() - begun)
    fleet.close()
    return {
        "latency": percentiles(took),
        "commands": number,
        "failed": failed,
        "late": late,
        "lost": len(sent),
        "acked": 0,
    }
