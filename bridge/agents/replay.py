"""Dead letters handed in again: after a fix each goes the way that it could not go before, once."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final, final

from bridge.agents.router import Router
from bridge.agents.services import Services
from bridge.errors import RefusedError, StorageUnavailableError
from bridge.messages import Address, Message
from bridge.receipts import Ledger, Outcome, Receipt
from bridge.storage import deadletters
from bridge.storage.deadletters import DeadLetter

AT_ONCE: Final = 100
"""Letters under way at the same time."""
WITHIN: Final = 30.0
"""Seconds for one letter: a database that is away must not hold the operator's request for ever."""


@final
class Replay:
    """A letter is removed after its message is committed. If the bridge dies between the two, a second replay finds the
    message known: it carries an id made from the letter's.

    A message that is refused again becomes a new letter, with the reason of today, in the place of the old one.
    """

    def __init__(self, services: Services, router: Router, ledger: Ledger) -> None:
        self._services = services
        self._router = router
        self._ledger = ledger

    async def one(self, letter: DeadLetter) -> Outcome:
        """Replay one letter, and say what became of its message: COMMITTED, DEDUPLICATED or DEAD_LETTERED.

        Raises RefusedError for a letter that leads nowhere, StorageUnavailableError when the database is away; either
        way it stays.
        """
        address = self._address(letter)
        settled = _Settled(asyncio.get_running_loop())
        receipt = self._ledger.receipt(settled, qos=1)
        self._router.deliver([Message(address, letter.payload, letter.at, receipt)])
        try:
            async with asyncio.timeout(WITHIN):
                outcome = await settled.outcome
        except TimeoutError:
            raise StorageUnavailableError("the message is not committed yet; replay the letter again later") from None
        if outcome is Outcome.RETRY or outcome is Outcome.DROPPED:
            raise StorageUnavailableError("the message could not be stored now; replay the letter again later")
        await self._services.writer.submit(partial(deadletters.delete_dead_letter, letter_id=letter.id))
        return outcome

    async def many(self, letters: list[DeadLetter]) -> list[Outcome | RefusedError]:
        """Replay letters, the oldest first; for each what became of it. Raises StorageUnavailableError."""
        results: dict[int, Outcome | RefusedError] = {}
        oldest_first = sorted(letters, key=lambda letter: letter.id)
        for start in range(0, len(oldest_first), AT_ONCE):
            portion = oldest_first[start : start + AT_ONCE]
            answers = await asyncio.gather(*map(self.one, portion), return_exceptions=True)
            for letter, answer in zip(portion, answers, strict=True):
                if isinstance(answer, BaseException) and not isinstance(answer, RefusedError):
                    raise answer
                results[letter.id] = answer
        return [results[letter.id] for letter in letters]

    def _address(self, letter: DeadLetter) -> Address:
        if letter.size > len(letter.payload):
            raise RefusedError(
                "truncated", f"only {len(letter.payload):,} of the message's {letter.size:,} bytes were kept"
            )
        address = self._services.topics.parse(letter.topic)
        if address is None:
            raise RefusedError("no_agent", f"{letter.topic[:200]!r} leads to no device's agent")
        return Address(
            address.topic,
            address.device_id,
            address.kind,
            address.stream,
            f"dead-letter-{letter.id}",
            address.rule,
        )


@final
class _Settled:
    """Waits for one receipt in the place of a connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.outcome: asyncio.Future[Outcome] = loop.create_future()

    def receipt_settled(self, receipt: Receipt) -> None:
        if not self.outcome.done() and receipt.outcome is not None:
            self.outcome.set_result(receipt.outcome)
