"""A browser, whose window is shared by all tests, and the end of the applications of each test."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.app_factory import close_apps
from tests.browser import Browser, missing_programs, open_browser, open_session

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a browser, one skipped test stands for all, so that the reason is one line of the summary."""
    missing = missing_programs()
    tests = [item for item in items if item.path.parent == FOLDER]
    if not missing or not tests:
        return
    reason = f"{len(tests)} tests of the playground in a browser: {' and '.join(missing)} not found"
    tests[0].add_marker(pytest.mark.skip(reason=reason))
    items[:] = [item for item in items if item not in tests[1:]]
    config.hook.pytest_deselected(items=tests[1:])


@pytest.fixture(scope="session")
def browser_session() -> Iterator[tuple[str, str]]:
    """The URL of a WebDriver, and the id of a session."""
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
