"""asyncio helpers."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


@asynccontextmanager
async def first_error_task_group() -> AsyncGenerator[asyncio.TaskGroup, None]:
    """A group of tasks, all ended with the block. The first failure ends the others, and is raised itself."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
