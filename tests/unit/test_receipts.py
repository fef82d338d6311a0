"""Receipts are settled once, and the ledger holds at every moment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import AlreadySettledError
from bridge.receipts import Ledger, Outcome, Receipt, settle_all


class Owner:
    def __init__(self) -> None:
        self.settled: list[Receipt] = []

    def receipt_settled(self, receipt: Receipt) -> None:
        self.settled.append(receipt)


def test_the_owner_is_told_once() -> None:
    owner = Owner()
    receipt = Ledger().receipt(owner, qos=1, packet_id=7)
    receipt.settle(Outcome.COMMITTED)
    assert owner.settled == [receipt]
    assert receipt.outcome is Outcome.COMMITTED


def test_settling_twice_is_an_error_and_counts_once() -> None:
    ledger, owner = Ledger(), Owner()
    receipt = ledger.receipt(owner)
    receipt.settle(Outcome.DEAD_LETTERED)
    with pytest.raises(AlreadySettledError):
        receipt.settle(Outcome.COMMITTED)
    assert (ledger.dead_lettered, ledger.committed, ledger.in_flight, len(owner.settled)) == (1, 0, 0, 1)


def test_only_retry_is_not_acknowledged() -> None:
    assert [outcome for outcome in Outcome if not outcome.acknowledged] == [Outcome.RETRY]


@given(st.lists(st.sampled_from([*Outcome, None])))
def test_the_ledger_holds_whatever_becomes_of_the_messages(outcomes: list[Outcome | None]) -> None:
    ledger = Ledger()
    for outcome in outcomes:
        receipt = ledger.receipt()
        assert ledger.difference == 0
        if outcome is not None:
            receipt.settle(outcome, "mailbox_full" if outcome is Outcome.DROPPED else "")
        assert ledger.difference == 0
    assert ledger.received == len(outcomes)
    assert ledger.in_flight == outcomes.count(None)
    assert ledger.dropped["mailbox_full"] == outcomes.count(Outcome.DROPPED)
    assert ledger.dropped["retry"] == outcomes.count(Outcome.RETRY)


def test_a_lost_message_shows_as_a_difference() -> None:
    ledger = Ledger()
    ledger.receipt()
    ledger.in_flight -= 1
    assert ledger.difference == 1


def test_many_are_settled_as_one_after_the_other_is() -> None:
    ledger, owner = Ledger(), Owner()
    receipts = [ledger.receipt(owner, qos=1, packet_id=n) for n in range(5)]
    settle_all([receipts[0], None, *receipts[1:]], Outcome.COMMITTED)
    assert owner.settled == receipts
    assert (ledger.committed, ledger.in_flight, ledger.difference) == (5, 0, 0)


def test_what_is_settled_already_among_many_is_an_error_and_counts_once() -> None:
    ledger, owner = Ledger(), Owner()
    receipts = [ledger.receipt(owner) for _ in range(3)]
    receipts[1].settle(Outcome.DEAD_LETTERED)
    with pytest.raises(AlreadySettledError):
        settle_all(receipts, Outcome.COMMITTED)
    assert (ledger.committed, ledger.dead_lettered, ledger.in_flight, ledger.difference) == (1, 1, 1, 0)
