"""Presence: in order, with a growing epoch, `silent` only after unanswered pings, sleepers left alone."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import RefusedError
from bridge.presence import (
    JITTER,
    MAX_SLEEP,
    ROUND_TRIPS,
    Presence,
    RoundTrips,
    Status,
    Transition,
    decode_sleep,
)

WAIT, GRACE = 30.0, 5.0


def test_a_device_comes_is_pinged_falls_silent_and_is_heard_again() -> None:
    presence = Presence()
    assert presence.connected(100.0) == Transition(Status.ONLINE, "connect", 1, 100.0)
    assert not presence.ping_due(129.9, WAIT, GRACE)
    assert presence.ping_due(130.0, WAIT, GRACE)
    assert presence.pinged(130.0, ping_misses=2) is None
    assert not presence.ping_due(131.0, WAIT, GRACE)
    assert presence.pinged(160.0, ping_misses=2) is None
    assert presence.pinged(190.0, ping_misses=2) == Transition(Status.SILENT, "no_answer", 2, 190.0)
    assert presence.pinged(220.0, ping_misses=2) is None
    assert presence.heard(221.0) == Transition(Status.ONLINE, "traffic", 3, 221.0)


def test_an_answered_ping_is_no_miss() -> None:
    presence = Presence()
    presence.heard(0.0)
    for round_start in range(30, 3000, 30):
        assert presence.pinged(round_start, ping_misses=1) is None
        assert presence.heard(round_start + 1.0) is None


def test_a_closed_connection_is_offline_and_a_stopping_bridge_does_not_know() -> None:
    presence = Presence()
    presence.heard(1.0)
    assert presence.gone(2.0, "keepalive") == Transition(Status.OFFLINE, "keepalive", 2, 2.0)
    assert presence.gone(3.0, "error") is None
    presence.heard(4.0)
    assert presence.gone(5.0, "shutdown") == Transition(Status.UNKNOWN, "shutdown", 4, 5.0)


def test_a_sleeper_is_left_alone_until_it_should_be_back() -> None:
    presence = Presence()
    presence.connected(100.0)
    assert presence.slept(110.0, 600.0) == Transition(Status.ONLINE, "sleep", 2, 110.0)
    assert presence.gone(111.0, "disconnect") is None
    assert presence.overslept(714.9, GRACE) is None
    assert presence.overslept(715.0, GRACE) == Transition(Status.OFFLINE, "overslept", 3, 715.0)
    assert presence.overslept(716.0, GRACE) is None


def test_a_sleeper_that_comes_back_is_awake() -> None:
    presence = Presence()
    presence.connected(100.0)
    presence.slept(110.0, 600.0)
    presence.gone(111.0, "keepalive")
    assert presence.connected(400.0) == Transition(Status.ONLINE, "connect", 3, 400.0)
    assert presence.gone(401.0, "disconnect") == Transition(Status.OFFLINE, "disconnect", 4, 401.0)


def test_a_sleeper_that_keeps_its_connection_is_not_pinged_before_it_wakes() -> None:
    presence = Presence()
    presence.connected(100.0)
    presence.slept(110.0, 600.0)
    assert presence.next_check(WAIT, GRACE) == 715.0
    assert not presence.ping_due(714.0, WAIT, GRACE)
    assert presence.ping_due(715.0, WAIT, GRACE)
    # It woke, stayed, and went without a word about sleep.
    assert presence.gone(720.0, "error") == Transition(Status.OFFLINE, "error", 3, 720.0)


@given(
    st.lists(st.sampled_from(["heard", "connected", "slept", "overslept", "disconnect", "shutdown", "pinged"])),
    st.integers(0, 1000),
)
def test_every_transition_raises_the_epoch_by_one_and_only_transitions_do(events: list[str], epoch: int) -> None:
    presence = Presence(epoch=epoch)
    status = presence.status
    for at, event in enumerate(events, 1):
        match event:
            case "heard":
                transition = presence.heard(float(at))
            case "connected":
                transition = presence.connected(float(at))
            case "slept":
                transition = presence.slept(float(at), 3.0)
            case "overslept":
                transition = presence.overslept(float(at), 1.0)
            case "pinged":
                transition = presence.pinged(float(at), ping_misses=1)
            case _:
                transition = presence.gone(float(at), event)
        if transition is not None:
            assert transition.epoch == epoch + 1
            assert transition.status is not status or status is Status.ONLINE
            status, epoch = transition.status, transition.epoch
        assert (presence.status, presence.epoch) == (status, epoch)


def test_pings_of_devices_that_fell_silent_together_are_spread() -> None:
    presence = Presence()
    first = sorted(presence.patience(f"d{n}", 30.0) for n in range(1000))
    assert 30.0 <= first[0] <= 31.0
    assert 59.0 <= first[-1] <= 60.0
    assert max(later - earlier for earlier, later in itertools.pairwise(first)) < 0.5
    presence.pinged(1.0, 3)
    later = [presence.patience(f"d{n}", 30.0) for n in range(1000)]
    assert 30.0 <= min(later) < max(later) <= 30.0 * (1 + JITTER)


@given(st.lists(st.floats(0, 60, width=32), min_size=1, max_size=3 * ROUND_TRIPS), st.floats(0.01, 1))
def test_round_trips_are_those_of_the_last_pings(seconds: list[float], share: float) -> None:
    trips = RoundTrips()
    for one in seconds:
        trips.add(one)
    kept = sorted(seconds[-ROUND_TRIPS:])
    assert trips.last == seconds[-1]
    assert trips.quantile(share) == kept[math.ceil(share * len(kept)) - 1]


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b'{"for": 0}',
        b'{"for": -1}',
        b'{"for": "long"}',
        b'{"for": 1e300}',
        b'{"for": true}',
        b'{"for": %d}' % (MAX_SLEEP + 1),
        b"[" * 100_000,
        b"\xff",
        b"",
    ],
)
def test_a_sleep_that_makes_no_sense_is_refused(payload: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        decode_sleep(payload)
    assert refused.value.reason == "bad_sleep"


def test_a_sleep_says_for_how_long() -> None:
    assert decode_sleep(b'{"for": 600, "why": "battery"}') == 600.0
