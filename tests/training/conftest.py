"""Fixtures for the tests of `training`."""

from collections.abc import Iterator

import pytest
import torch
from diffusers import FluxTransformer2DModel

from tests.training.base_models import nonzero_base
from training import precision


@pytest.fixture(scope="module")
def float32_training() -> Iterator[None]:
    """Trains in float32, which a CPU without bfloat16 instructions computes tens of times faster."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(precision, "COMPUTE_DTYPE", torch.float32)
        yield


@pytest.fixture(scope="module")
def base() -> FluxTransformer2DModel:
    return nonzero_base()
