"""Two HTTP servers: a provider, and the file host that it redirects to."""

from collections.abc import AsyncIterator

import pytest

from tests.local_server import LocalServer, local_server


@pytest.fixture
async def provider() -> AsyncIterator[LocalServer]:
    async with local_server() as server:
        yield server


@pytest.fixture
async def file_host() -> AsyncIterator[LocalServer]:
    async with local_server() as server:
        yield server
