"""Fixtures of the engine tests."""

from collections.abc import Iterator

import pytest
import torch

from tests.unit.engine.checkpoints import Checkpoints


@pytest.fixture(scope="session", autouse=True)
def _single_torch_thread() -> None:
    """More threads than free cores make torch many times slower."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()
