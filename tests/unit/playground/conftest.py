"""A browser for each test, and a pool that generates images step by step."""

from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from tests.app_factory import close_apps
from tests.browser import Browser, missing_programs, open_browser, open_driver


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    if missing := missing_programs():
        pytest.skip(f"the playground is not tested in a browser: {' and '.join(missing)} not found")
    async with open_driver() as driver_url, open_browser(driver_url) as browser:
        yield browser


@pytest.fixture(autouse=True)
async def closed_apps() -> AsyncGenerator[None, None]:
    yield
    await close_apps()
