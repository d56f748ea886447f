"""The dtype of matrix products in training."""

import pytest
import torch

from training import precision
from training.precision import autocast


def test_products_are_bfloat16_by_default() -> None:
    with autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_float32_turns_autocast_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "COMPUTE_DTYPE", torch.float32)
    with autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
