"""Waits for a database that is away for a moment."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from serve.errors import DatabaseUnavailable

PATIENCE_S = 3.0
"""How long a request waits for the database."""
RETRY_S = 0.25

Result = TypeVar("Result")


async def with_patience(call: Callable[[], Awaitable[Result]], patience_s: float = PATIENCE_S) -> Result:
    """The result of a call that needs the database, which may be away for a moment. Raises `DatabaseUnavailable`."""
    cause = "it did not answer in time"
    try:
        async with asyncio.timeout(patience_s):
            while True:
                try:
                    return await call()
                except DatabaseUnavailable as error:
                    cause = error.cause
                await asyncio.sleep(RETRY_S)
    except TimeoutError:
        raise DatabaseUnavailable(cause) from None
