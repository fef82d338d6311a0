"""What an operator sees: a command followed to its end, lists, and errors that say what to do. The bridge is played."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from tests.unit.cli.conftest import Run

AT = "2026-01-02T03:04:05.678Z"


class Played(BaseHTTPRequestHandler):
    """Gives the answers it was told to give, in their order, and keeps what it was asked."""

    answers: ClassVar[list[tuple[int, Any]]] = []
    asked: ClassVar[list[tuple[str, str, Any, str | None]]] = []

    def answer(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        self.asked.append((self.command, self.path, body, self.headers.get("authorization")))
        status, document = self.answers.pop(0)
        text = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Played]]:
    Played.answers, Played.asked = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), Played) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("BRIDGE_URL", f"http://127.0.0.1:{server.server_address[1]}")
        yield Played
        server.shutdown()
        thread.join()
    assert not Played.answers, "not everything was asked for"


def command(status: str, **more: Any) -> dict[str, Any]:
    return {"command_id": "c1", "status": status, "result": None, "error": None, **more}


def look(status: str, *steps: tuple[int, str], **more: Any) -> tuple[int, Any]:
    events = [{"seq": seq, "status": step, "at": AT, "cause": "why", "detail": None} for seq, step in steps]
    return 200, {"command": command(status, **more), "events": events}


# ---------------------------------------------------------------------- send


def test_send_prints_each_step_once(run: Run, played: type[Played], capsys: pytest.CaptureFixture[str]) -> None:
    played.answers += [
        (202, command("queued")),
        look("sent", (1, "queued"), (2, "sent")),
        look("sent"),
        look("succeeded", (3, "succeeded"), result={"ok": True}),
    ]
    assert run("send", "fridge-7", "reboot", "--arg", "delay=5", "--arg", "why=a=b", "--ttl", "9", "--id", "k") == 0
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines()[1:4]] == ["queued", "sent", "succeeded"]
    assert 'result: {"ok": true}' in out
    method, path, body, _ = played.asked[0]
    assert (method, path) == ("POST", "/api/v1/devices/fridge-7/commands")
    assert body == {"name": "reboot", "args": {"delay": 5, "why": "a=b"}, "ttl": 9.0, "id": "k"}
    assert [path.rpartition("=")[2] for _, path, _, _ in played.asked[1:]] == ["0", "2", "2"]


@pytest.mark.parametrize("status", ["failed", "expired", "cancelled"])
def test_send_ends_with_3_if_it_did_not_succeed(
    run: Run, played: type[Played], capsys: pytest.CaptureFixture[str], status: str
) -> None:
    played.answers += [(202, command("queued")), look(status, (1, "queued"), (2, status), error="no\x1b[31m")]
    assert run("send", "fridge-7", "reboot") == 3
    out = capsys.readouterr().out
    assert status in out
    assert "error: no\\x1b[31m" in out


def test_send_of_a_command_that_had_ended_before(run: Run, played: type[Played]) -> None:
    """The same idempotency key again: all steps come at once, or the steps before the last look."""
    played.answers += [(202, command("succeeded")), look("succeeded", (1, "queued")), look("succeeded")]
    assert run("send", "fridge-7", "reboot", "--id", "k") == 0


def test_send_as_json(run: Run, played: type[Played], capsys: pytest.CaptureFixture[str]) -> None:
    played.answers += [(202, command("queued")), look("failed", (1, "queued"), (2, "failed"))]
    assert run("send", "fridge-7", "reboot", "--json") == 3
    document = json.loads(capsys.readouterr().out)
    assert document["command"]["status"] == "failed"
    assert [event["seq"] for event in document["events"]] == [1, 2]


def test_send_at_a_time(run: Run, played: type[Played], capsys: pytest.CaptureFixture[str]) -> None:
    played.answers = [(201, {"schedule_id": "s-1"})]
    assert run("send", "reboot", "--all", "--cron", "0 3 * * *", "--grace", "600") == 0
    assert capsys.readouterr().out == "s-1\n"
    ((_, path, body, _),) = played.asked
    assert (path, body["cron"], body["grace"]) == ("/api/v1/schedules", "0 3 * * *", 600.0)
    assert run("send", "reboot", "--all", "--grace", "600") == 2, "late for what?"


def test_the_ledger_ends_with_1_if_it_does_not_hold(
    run: Run, played: type[Played], capsys: pytest.CaptureFixture[str]
) -> None:
    played.answers = [(200, {"received": 5, "committed": 3, "dropped": {"mailbox_full": 1}, "difference": 1})]
    assert run("ledger") == 1
    assert "dropped: mailbox_full" in capsys.readouterr().out


def test_the_audit_trail_of_all_pages(run: Run, played: type[Played], capsys: pytest.CaptureFixture[str]) -> None:
    line = {
        "at": AT,
        "who": "\x1b[31mred",
        "address": "::1",
        "action": "MQTT command",
        "target": "d1",
        "detail": "reboot",
    }
    played.answers = [(200, {"audit": [line], "next": 7}), (200, {"audit": [line], "next": None})]
    assert run("audit", "--limit", "10") == 0
    shown = capsys.readouterr().out
    assert shown.count("MQTT command") == 2
    assert "\x1b" not in shown
    assert played.asked[1][1] == "/api/v1/audit?limit=9&before=7"


def test_the_sinks_and_what_keeps_them(run: Run, played: type[Played], capsys: pytest.CaptureFixture[str]) -> None:
    sink = {"name": "cloud", "delivered": 1234, "refused": 0, "retries": 3, "lag": 12.5, "trouble": "HTTP 503"}
    played.answers = [(200, {"sinks": [sink]}), (200, {"sinks": []})]
    assert run("sinks") == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["cloud", "1,234", "0", "3", "12.5", "s", "HTTP", "503"]
    assert run("sinks") == 0
    assert "There are no sinks" in capsys.readouterr().out


def test_send_without_waiting(run: Run, played: type[Played], capsys: pytest.CaptureFixture[str]) -> None:
    played.answers += [(202, command("queued"))]
    assert run("send", "fridge-7", "reboot", "--no-wait", "--args", "[1]") == 0
    assert capsys.readouterr().out == "c1\n"
    assert played.asked[0][2] == {"name": "reboot", "args": [1]}


@pytest.mark.parametrize(
    "words",
    [["reboot"], ["d1", "reboot", "--all"], ["d1", "reboot", "--tag", "cold"], ["d1", "reboot", "--at", "soon"]],
)
def test_send_refuses_a_target_that_is_none_or_two(run: Run, played: type[Played], words: list[str]) -> None:
    assert run("send", *words) == 2
    assert not played.asked


@pytest.mark.parametrize("wrong", [["--args", "{"], ["--arg", "x"], ["--arg", "a=1", "--args", "{}"]])
def test_send_refuses_arguments_that_are_none(run: Run, played: type[Played], wrong: list[str]) -> None:
    assert run("send", "fridge-7", "reboot", *wrong) == 2
    assert not played.asked


# ---------------------------------------------------------------------- lists


def device(number: int, **more: Any) -> dict[str, Any]:
    return {"device_id": f"d{number}", "status": "online", "last_seen": AT, "messages": 1234, "streams": {}, **more}


def test_devices_of_all_pages(run: Run, played: type[Played], capsys: pytest.CaptureFixture[str]) -> None:
    streams = {
        "default": {"ts": AT, "values": {"id": "x", "ts": 5, "temperature": 4.2}},
        "door": {"ts": AT, "values": {"open": False}},
    }
    played.answers += [
        (200, {"devices": [device(1, streams=streams)], "next": "d1"}),
        (200, {"devices": [device(2)], "next": None}),
    ]
    assert run("devices") == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split()[0:2] == ["d1", "online"]
    assert "1,234" in first
    assert first.rstrip().endswith("temperature 4.2; door: open False")
    assert second.startswith("d2")
    assert played.asked[1][1].endswith("after=d1")


def test_devices_as_json_and_limited(run: Run, played: type[Played], capsys: pytest.CaptureFixture[str]) -> None:
    played.answers += [(200, {"devices": [device(1), device(2)], "next": "d2"})]
    assert run("devices", "--json", "--limit", "2") == 0
    assert [found["device_id"] for found in json.loads(capsys.readouterr().out)] == ["d1", "d2"]
    assert "limit=2" in played.asked[0][1]


def test_dead_letters_cannot_steer_the_terminal(
    run: Run, played: type[Played], capsys: pytest.CaptureFixture[str]
) -> None:
    letter = {
        "id": 1,
        "at": AT,
        "reason": "not_json",
        "topic": "devices/a\x1b[2J",
        "error": "bad\nbad",
        "payload": "[red]\x07",
    }
    played.answers += [(200, {"dead_letters": [letter]})]
    assert run("deadletters") == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "devices/a\\x1b[2J" in out
    assert "[red]" in out, "what looks like markup is shown as it is"


# ---------------------------------------------------------------------- errors


def test_the_token_is_sent_and_asked_for(
    run: Run, played: type[Played], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BRIDGE_TOKEN", "sesame")
    played.answers += [(401, {"title": "x", "status": 401, "detail": "send the token"})]
    assert run("devices") == 1
    assert played.asked[0][3] == "Bearer sesame"
    err = capsys.readouterr().err
    assert err.startswith("mqtt-bridge: send the token: the token in BRIDGE_TOKEN is wrong or revoked")
    monkeypatch.delenv("BRIDGE_TOKEN")
    played.answers += [(401, {"title": "x", "status": 401, "detail": "send the token"})]
    assert run("devices") == 1
    assert "set BRIDGE_TOKEN; `mqtt-bridge tokens add NAME`" in capsys.readouterr().err


def test_somebody_who_is_no_bridge(run: Run, played: type[Played], capsys: pytest.CaptureFixture[str]) -> None:
    played.answers += [(200, b"<html>hello</html>")]
    assert run("devices") == 1
    assert "BRIDGE_URL" in capsys.readouterr().err


def test_nobody_there(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BRIDGE_URL", "http://127.0.0.1:1")
    assert run("devices") == 1
    err = capsys.readouterr().err
    assert "no bridge answers at http://127.0.0.1:1" in err
    assert "mqtt-bridge serve" in err
    assert len(err.splitlines()) == 1


# ---------------------------------------------------------------------- doctor --live


def test_the_doctor_says_what_a_slow_agent_is_waiting_for(
    run: Run, played: type[Played], capsys: pytest.CaptureFixture[str]
) -> None:
    counts = dict.fromkeys(("received", "committed", "deduplicated", "dead_lettered", "in_flight", "difference"), 0)
    wait = {"device_id": "f1\x1b", "reason": "handler", "handler": "Freezer.door", "seconds": 61.5, "messages": 1200}
    agents = {"awake": 9000, "asleep": 7, "cold": 0, "restarts": 2, "loop_lag_p99_ms": 3.0, "uncommitted": 12}
    played.answers += [
        (200, {"status": "ready"}),
        (200, {**counts, "dropped": {}}),
        (200, {**agents, "congested": False, "waiting": [wait]}),
    ]
    assert run("doctor", "--live") == 1
    out = capsys.readouterr().out
    assert "agents: 9,000 awake, 7 asleep, 0 cold, 2 restarts; event loop 3.0 ms late (p99)" in out
    assert "writer: 12 rows" in out
    assert "f1\\x1b: is in Freezer.door for 61.5 s, 1,200 messages behind it" in out


def test_commands_are_asked_for_until_there_are_as_many_as_wanted(
    run: Run, played: type[Played], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a device's very many commands a page holds only those that fit among as many as may be looked at."""
    rows = [command("failed", command_id=f"c{n}", created_at=AT, device_id="d1", name="x") for n in (5, 2, 1)]
    played.answers += [
        (200, {"commands": [], "next": "9.5~c9"}),
        (200, {"commands": rows[:1], "next": "5.0~c5"}),
        (200, {"commands": rows[1:], "next": "1.0~c1"}),
    ]
    assert run("commands", "--device", "d1", "--status", "failed", "--limit", "2", "--json") == 0
    assert [one["command_id"] for one in json.loads(capsys.readouterr().out)] == ["c5", "c2"]
    begun = [path.partition("before=")[2] for _, path, _, _ in played.asked]
    assert begun == ["", "9.5~c9", "5.0~c5"]
