"""For all tests: what they log, and that garbage is not searched among imports, which live as long as the process."""

import gc
import logging
from collections.abc import Iterator

import pytest

from tests.logs import Logs

gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()
    gc.enable()
    # Drawing makes many small objects and hardly any cycles.
    gc.set_threshold(20_000, 50, 50)


@pytest.fixture
def logs() -> Iterator[Logs]:
    """What comes to the root logger: warnings and worse, until a test sets its level."""
    kept, root = Logs(), logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)
    root.addHandler(kept)
    yield kept
    root.removeHandler(kept)
    root.setLevel(level)
