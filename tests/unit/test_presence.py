"""Presence: in order, with a growing epoch, and `silent` only after unanswered pings."""

from hypothesis import given
from hypothesis import strategies as st

from bridge.presence import Presence, Status, Transition


def test_a_device_comes_is_pinged_falls_silent_and_is_heard_again() -> None:
    presence = Presence()
    assert presence.heard(100.0, "connect") == Transition(Status.ONLINE, "connect", 1, 100.0)
    assert not presence.ping_due(129.9, 30.0)
    assert presence.ping_due(130.0, 30.0)
    assert presence.pinged(130.0, ping_misses=2) is None
    assert not presence.ping_due(131.0, 30.0)
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


@given(st.lists(st.sampled_from(["heard", "gone", "shutdown", "pinged"])), st.integers(0, 1000))
def test_every_transition_changes_the_status_and_raises_the_epoch(events: list[str], epoch: int) -> None:
    presence = Presence(epoch=epoch)
    status = presence.status
    for at, event in enumerate(events, 1):
        match event:
            case "heard":
                transition = presence.heard(float(at))
            case "pinged":
                transition = presence.pinged(float(at), ping_misses=1)
            case _:
                transition = presence.gone(float(at), event)
        if transition is not None:
            assert transition.epoch == epoch + 1
            assert transition.status is not status
            status, epoch = transition.status, transition.epoch
        assert presence.status is status
