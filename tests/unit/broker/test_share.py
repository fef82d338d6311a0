"""How the receive window is shared out."""

from __future__ import annotations

from bridge.broker.share import FAIR, Share


def test_alone_a_connection_has_all() -> None:
    share = Share(1_000)
    assert share.window == 1_000
    share.enter()
    assert share.window == 1_000


def test_a_few_have_an_even_part_and_many_have_what_is_fair() -> None:
    share = Share(1_000)
    windows = []
    for _ in range(50):
        share.enter()
        windows.append(share.window)
    assert windows[:5] == [1_000, 500, 333, 250, 200]
    assert set(windows[4:]) == {FAIR}


def test_who_has_nothing_more_under_way_leaves_his_part_to_the_others() -> None:
    share = Share(1_000)
    share.enter()
    share.enter()
    share.leave()
    assert share.window == 1_000
    share.leave()
    assert (share.busy, share.window) == (0, 1_000)


def test_it_never_gives_more_than_there_is() -> None:
    share = Share(10)
    for _ in range(20):
        share.enter()
    assert share.window == 10
