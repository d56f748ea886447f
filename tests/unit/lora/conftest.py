"""Two servers for every test that asks for them: a site, and the store that it redirects to."""

from collections.abc import AsyncIterator

import pytest

from tests.local_server import LocalServer


@pytest.fixture
async def site() -> AsyncIterator[LocalServer]:
    server = LocalServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def store() -> AsyncIterator[LocalServer]:
    server = LocalServer()
    await server.start()
    yield server
    await server.stop()
