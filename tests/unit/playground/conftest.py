"""A browser, whose window is shared by all tests, and the end of the applications of each test."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator

import pytest

from tests.app_factory import close_apps
from tests.browser import Browser, missing_programs, open_browser, open_session


@pytest.fixture(scope="session")
def browser_session() -> Iterator[tuple[str, str]]:
    """The URL of a WebDriver, and the id of a session."""
    if missing := missing_programs():
        pytest.skip(f"the playground is not tested in a browser: {' and '.join(missing)} not found")
    with open_session() as session:
        yield session


@pytest.fixture
async def browser(browser_session: tuple[str, str]) -> AsyncIterator[Browser]:
    async with open_browser(*browser_session) as browser:
        yield browser


@pytest.fixture(autouse=True)
async def closed_apps() -> AsyncGenerator[None, None]:
    yield
    await close_apps()
