"""At most so many within a window."""

from bridge.agents.limits import Limit


def test_the_limit_is_reached_and_passes_with_the_window() -> None:
    limit = Limit(2, window=10.0)
    assert limit.allow(0.0)
    assert limit.allow(1.0)
    assert not limit.allow(9.9)
    assert limit.passed_over == 1
    assert limit.allow(10.0)
    assert limit.reached(10.5)
    assert not limit.reached(11.0)
