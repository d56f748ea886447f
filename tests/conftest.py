"""Fixtures and garbage collector settings for all tests."""

import gc
import logging
from collections.abc import Iterator

import pytest

from tests import js_client as javascript
from tests import python2_client as python2
from tests.js_client import JsClient
from tests.logs import Logs
from tests.python2_client import Python2Client

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
    handler, root, package = Logs(), logging.getLogger(), logging.getLogger("serve")
    levels = root.level, package.level
    root.setLevel(logging.WARNING)
    package.setLevel(logging.NOTSET)  # An earlier test may have created a replica, which sets it to INFO.
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    root.setLevel(levels[0])
    package.setLevel(levels[1])


@pytest.fixture(scope="session")
def js_client(tmp_path_factory: pytest.TempPathFactory) -> JsClient:
    """Replicate's JavaScript client; tests that use it are skipped where it cannot be installed."""
    try:
        return javascript.install(tmp_path_factory.mktemp("js-client"))
    except javascript.JsClientUnavailable as error:
        pytest.skip(f"the JavaScript client is not tested: {error}")


@pytest.fixture(scope="session")
def python2_client(tmp_path_factory: pytest.TempPathFactory) -> Python2Client:
    """Version 2 of Replicate's Python client; tests that use it are skipped where it cannot be installed."""
    try:
        return python2.install(tmp_path_factory.mktemp("python2-client"))
    except python2.Python2ClientUnavailable as error:
        pytest.skip(f"version 2 of the Python client is not tested: {error}")
