"""Closes the applications of each test."""

from collections.abc import AsyncGenerator

import pytest

from tests.app_factory import close_apps


@pytest.fixture(autouse=True)
async def closed_apps() -> AsyncGenerator[None, None]:
    yield
    await close_apps()
