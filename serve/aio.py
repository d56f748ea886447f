"""asyncio helpers."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


@asynccontextmanager
async def first_error_task_group() -> AsyncGenerator[asyncio.TaskGroup, None]:
    """An `asyncio.TaskGroup` that raises the first error of its tasks instead of an `ExceptionGroup`."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
