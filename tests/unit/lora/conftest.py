"""Two HTTP servers: a provider, and the file host that it redirects to."""

from collections.abc import AsyncIterator

import pytest

from tests.local_server import LocalServer


@pytest.fixture
async def provider() -> AsyncIterator[LocalServer]:
    server = LocalServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def file_host() -> AsyncIterator[LocalServer]:
    server = LocalServer()
    await server.start()
    yield server
    await server.stop()
