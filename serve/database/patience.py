"""Waits for a database that is away for a moment."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from serve.errors import DatabaseUnavailable

PATIENCE_S = 3.0
"""How long a failed call is repeated."""
RETRY_S = 0.25
ANSWER_TIMEOUT_S = 30.0
"""How long a call may take. Under load, an answer takes many seconds, and a repeat would add to the load."""

Result = TypeVar("Result")


async def with_patience(
    call: Callable[[], Awaitable[Result]], patience_s: float = PATIENCE_S, answer_timeout_s: float = ANSWER_TIMEOUT_S
) -> Result:
    """The result of a call that needs the database, which may be away for a moment. Raises `DatabaseUnavailable`.

    Only a failed call is repeated: one that is running gets all of its time.
    """
    end_s = time.monotonic() + patience_s
    while True:
        try:
            return await _with_timeout(call, answer_timeout_s)
        except DatabaseUnavailable:
            if time.monotonic() + RETRY_S > end_s:
                raise
        await asyncio.sleep(RETRY_S)


async def _with_timeout(call: Callable[[], Awaitable[Result]], timeout_s: float) -> Result:
    try:
        async with asyncio.timeout(timeout_s):
            return await call()
    except TimeoutError:
        raise DatabaseUnavailable(f"it did not answer within {timeout_s:g} s") from None
