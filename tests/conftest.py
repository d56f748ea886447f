"""For all tests: what is imported lives as long as the process, so no search for garbage need look there."""

import gc

import pytest

gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()
    gc.enable()
    # Drawing makes many small objects and hardly any cycles.
    gc.set_threshold(20_000, 50, 50)
