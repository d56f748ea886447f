"""Fixtures and garbage collector settings for all tests."""

import gc
import logging
from collections.abc import Iterator

import pytest

from tests.js_client import JsClient, JsClientUnavailable, install
from tests.logs import Logs

# Imported modules live as long as the process, so the collector need not scan them.
gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()
    gc.enable()
    # Image generation creates many small objects and hardly any reference cycles.
    gc.set_threshold(20_000, 50, 50)


@pytest.fixture
def logs() -> Iterator[Logs]:
    """Records what reaches the root logger: warnings and errors, unless a test changes its level."""
    handler, root = Logs(), logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="session")
def js_client(tmp_path_factory: pytest.TempPathFactory) -> JsClient:
    """Replicate's JavaScript client; tests that use it are skipped where it cannot be installed."""
    try:
        return install(tmp_path_factory.mktemp("js-client"))
    except JsClientUnavailable as error:
        pytest.skip(f"the JavaScript client is not tested: {error}")
