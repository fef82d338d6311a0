from __future__ import annotations

import pytest
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from bridge.storage.retries import retried


class Flaky:
    """Fails with the errors it was given, one at each call, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def three_times() -> AsyncRetrying:
    return AsyncRetrying(retry=retry_if_exception_type(OSError), stop=stop_after_attempt(3), reraise=True)


def never() -> AsyncRetrying:
    raise AssertionError("nobody needs a policy for what succeeds")


async def test_what_succeeds_at_once_has_no_policy_made() -> None:
    attempt = Flaky()
    assert await retried(attempt, never) == "done"
    assert attempt.calls == 1


async def test_the_failed_first_attempt_counts() -> None:
    attempt = Flaky(OSError("1"), OSError("2"))
    assert await retried(attempt, three_times) == "done"
    assert attempt.calls == 3
    attempt = Flaky(OSError("1"), OSError("2"), OSError("3"))
    with pytest.raises(OSError, match="3"):
        await retried(attempt, three_times)
    assert attempt.calls == 3


async def test_what_the_policy_does_not_retry_is_raised_at_once() -> None:
    attempt = Flaky(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await retried(attempt, three_times)
    assert attempt.calls == 1
