"""HTTP servers on loopback for the network tests."""

from collections.abc import AsyncIterator

import pytest

from tests.local_server import LocalServer, local_server


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with local_server() as server:
        yield server


@pytest.fixture
async def other_server() -> AsyncIterator[LocalServer]:
    async with local_server() as server:
        yield server
