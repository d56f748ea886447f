"""The dtype that training computes in: bfloat16, with weights and optimizer states in float32."""

from contextlib import AbstractContextManager
from typing import Any

import torch

COMPUTE_DTYPE = torch.bfloat16
"""Tests use float32: a CPU without bfloat16 instructions emulates them and is tens of times slower."""


def autocast(device_type: str) -> AbstractContextManager[Any]:
    return torch.autocast(device_type, COMPUTE_DTYPE, enabled=torch.float32 != COMPUTE_DTYPE)
