"""Repeats of calls that need the database."""

import asyncio

import pytest

from serve.database import patience
from serve.database.patience import with_patience
from serve.errors import DatabaseUnavailable


class FakeCall:
    """Fails `failures` times, and then takes `duration_s`."""

    def __init__(self, failures: int = 0, duration_s: float = 0) -> None:
        self.calls = 0
        self._failures = failures
        self._duration_s = duration_s

    async def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self._failures:
            raise DatabaseUnavailable(f"failure {self.calls}")
        await asyncio.sleep(self._duration_s)
        return "result"


@pytest.fixture(autouse=True)
def quick_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "RETRY_S", 0)


async def test_running_call_outlasts_the_patience() -> None:
    call = FakeCall(duration_s=0.05)
    assert await with_patience(call, patience_s=0.01) == "result"
    assert call.calls == 1


async def test_failed_call_is_repeated() -> None:
    call = FakeCall(failures=2)
    assert await with_patience(call, patience_s=60) == "result"
    assert call.calls == 3


async def test_error_is_that_of_the_last_call_when_patience_is_over() -> None:
    call = FakeCall(failures=10**9)
    with pytest.raises(DatabaseUnavailable) as error:
        await with_patience(call, patience_s=0.01)
    assert error.value.cause == f"failure {call.calls}"


async def test_call_without_an_answer_fails() -> None:
    with pytest.raises(DatabaseUnavailable) as error:
        await with_patience(FakeCall(duration_s=60), patience_s=0, answer_timeout_s=0.01)
    assert "0.01" in error.value.cause
