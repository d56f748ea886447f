"""Chooses the dtype in which a device computes: bf16 where it is fast, otherwise float32.

CPUs without bf16 instructions (AVX-512 BF16 or AMX) multiply bf16 matrices several times more slowly than float32 ones.
"""

import logging
import time
from collections.abc import Mapping

import torch
from torch.nn.functional import linear

MAX_SLOWDOWN = 1.25
"""bf16 is chosen up to this multiple of float32's time, because it takes half the memory."""
_CANDIDATES = (torch.bfloat16, torch.float32)
_ROWS = 256
_MAX_WIDTH = 1024
"""Wider layers are measured at this width, so that a slow CPU does not take seconds."""
_RUNS = 5
_log = logging.getLogger(__name__)


def choose_compute_dtype(device: torch.device, width: int) -> torch.dtype:
    """The dtype for a transformer of inner width `width`. On a CPU both are measured, which takes about 50 ms."""
    if device.type != "cpu":
        return torch.bfloat16
    times_s = measure_linear(min(width, _MAX_WIDTH))
    dtype = choose(times_s)
    measured = ", ".join(f"{dtype_name(candidate)} {1000 * time_s:.2f} ms" for candidate, time_s in times_s.items())
    _log.info("computing in %s; one linear layer of width %d takes: %s", dtype_name(dtype), width, measured)
    return dtype


def choose(times_s: Mapping[torch.dtype, float]) -> torch.dtype:
    """bf16 unless it is clearly slower than float32."""
    is_slow = times_s[torch.bfloat16] > MAX_SLOWDOWN * times_s[torch.float32]
    return torch.float32 if is_slow else torch.bfloat16


def measure_linear(width: int) -> dict[torch.dtype, float]:
    """Seconds for a linear layer from `width` to 4 x `width` on a CPU: the best of several runs in each dtype.

    The dtypes take turns, so that other processes slow both.
    """
    operands = {
        dtype: (torch.ones(_ROWS, width, dtype=dtype), torch.ones(4 * width, width, dtype=dtype))
        for dtype in _CANDIDATES
    }
    times_s: dict[torch.dtype, list[float]] = {dtype: [] for dtype in _CANDIDATES}
    for _ in range(_RUNS):
        for dtype, (rows, weight) in operands.items():
            start_s = time.perf_counter()
            linear(rows, weight)
            times_s[dtype].append(time.perf_counter() - start_s)
    return {dtype: min(runs) for dtype, runs in times_s.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`, as in the settings."""
    return str(dtype).removeprefix("torch.")
