"""Fixtures of the engine tests."""

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from serve.engine.checkpoint import Checkpoint
from tests.unit.engine.checkpoints import Checkpoints


@pytest.fixture(scope="session", autouse=True)
def _single_torch_thread() -> None:
    """More threads than free cores make torch many times slower."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def checkpoint(checkpoints: Checkpoints) -> Checkpoint:
    """[dev] in bf16. It is shared by all tests, which do not change it."""
    return checkpoints.get("dev", "bf16")


@pytest.fixture
def fake_gpu() -> Iterator[None]:
    """Tensors without content on a GPU; the arguments of operators are checked as on a real one."""
    with FakeTensorMode():
        yield


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()
