"""HTTP servers on loopback for the network tests."""

from collections.abc import AsyncIterator

import pytest

from tests.local_server import LocalServer


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    server = LocalServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def other_server() -> AsyncIterator[LocalServer]:
    server = LocalServer()
    await server.start()
    yield server
    await server.stop()
