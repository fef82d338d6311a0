"""The life of a command: what may follow what, and which requests and responses are refused."""

import pytest

from bridge.commands import (
    PREDECESSORS,
    Command,
    CommandRequest,
    CommandStatus,
    decode_request,
    decode_response,
    new_command,
)
from bridge.errors import RefusedError

S = CommandStatus
NOW = 1_790_000_000.0


def command(request: CommandRequest) -> Command:
    return new_command("fridge-7", request, NOW, ttl=60.0, max_ttl=3600.0)


def test_nothing_follows_a_final_status() -> None:
    for status in S:
        for predecessor in PREDECESSORS[status]:
            assert not predecessor.final


def test_every_unfinished_command_can_expire_and_be_cancelled() -> None:
    unfinished = {status for status in S if not status.final}
    assert PREDECESSORS[S.EXPIRED] == PREDECESSORS[S.CANCELLED] == unfinished


def test_a_response_may_overtake_the_puback_but_not_the_sending() -> None:
    assert S.SENT in PREDECESSORS[S.SUCCEEDED]
    assert S.QUEUED not in PREDECESSORS[S.SUCCEEDED]
    assert S.IN_PROGRESS not in PREDECESSORS[S.DELIVERED]


def test_a_new_command_is_queued_until_its_ttl() -> None:
    made = command(decode_request(b'{"name":"reboot","args":{"delay":5},"id":"k1","ttl":30}'))
    assert (made.status, made.key, made.expires_at, made.args) == (S.QUEUED, "k1", NOW + 30, {"delay": 5})
    assert made.may_become(S.SENT)
    assert not made.may_become(S.SUCCEEDED)


def test_without_a_key_two_requests_are_two_commands() -> None:
    first, second = command(CommandRequest("reboot")), command(CommandRequest("reboot"))
    assert first.key != second.key
    assert first.expires_at == NOW + 60


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"reboot", b"{}", b'{"name":1}', b'{"name":""}', b'{"name":"x","ttl":0}', b'{"name":"x","ttl":-1}',
        b'{"name":"x","ttl":3601}', b'{"name":"x","ttl":"soon"}', b'{"name":"x","id":""}', b'{"name":"\xff"}',
        b'{"name":"x","attempts":0}', b'{"name":"x","attempts":101}', b'{"name":"x","retry_after":0}', b"[" * 9999,
    ],
)  # fmt: skip
def test_a_bad_request_is_refused(payload: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        command(decode_request(payload))
    assert refused.value.reason == "bad_command"


def test_a_further_attempt_is_due_while_the_device_has_acknowledged_none() -> None:
    made = command(CommandRequest("reboot", attempts=2, retry_after=5.0))
    assert made.retry_due() == float("inf"), "nothing was sent yet"
    made.status, made.attempts, made.updated_at = S.SENT, 1, NOW + 1
    assert made.retry_due() == NOW + 6
    made.status = S.DELIVERED
    assert made.retry_due() == float("inf"), "it has acknowledged the request: it is its turn"
    made.status, made.attempts = S.SENT, 2
    assert made.retry_due() == float("inf")
    assert not made.may_become(S.SENT)


def test_what_is_not_said_comes_from_the_defaults() -> None:
    made = new_command("d1", CommandRequest("x"), NOW, ttl=5, max_ttl=9, attempts=7, retry_after=2)
    assert (made.expires_at, made.max_attempts, made.retry_after) == (NOW + 5, 7, 2)


def test_a_response_says_how_far_the_device_is() -> None:
    response = decode_response(b'{"id":"c1","status":"succeeded","result":{"ok":true}}')
    assert (response.id, response.status, response.result) == ("c1", S.SUCCEEDED, {"ok": True})


@pytest.mark.parametrize(
    "payload", [b"{}", b'{"id":"c1"}', b'{"id":"c1","status":"sent"}', b'{"id":"c1","status":"done"}']
)
def test_a_bad_response_is_refused(payload: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        decode_response(payload)
    assert refused.value.reason == "bad_response"
