"""For all tests: what was imported lives as long as the process, so no search for garbage need look there again."""

import gc

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()
