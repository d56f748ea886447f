"""Measures the limits of the device: matrix products and attention in FLUX.1's shapes, and memory bandwidth."""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.gpu_check.scale import SCALES
from benchmarks.gpu_check.step_benchmark import Row
from serve.engine.attention import KERNELS, MEASURED
from serve.engine.device import synchronize
from serve.engine.float8_linear import FLOAT8
from serve.engine.fp8_kernel import MIN_CAPABILITY
from serve.settings import AttentionKernel

ROUNDS = 5
TARGET_S = 0.02
"""Length of a round, so that the time to launch does not count."""
TEXT_TOKENS = 512
HEADS, HEAD_WIDTH = 24, 128
WIDTH = HEADS * HEAD_WIDTH
LINEARS = {
    "q, k, v, out": (WIDTH, WIDTH),
    "q, k, v fused": (WIDTH, 3 * WIDTH),
    "feed-forward in": (WIDTH, 4 * WIDTH),
    "feed-forward out": (4 * WIDTH, WIDTH),
    "single in, fused": (WIDTH, 7 * WIDTH),
    "single out": (5 * WIDTH, WIDTH),
}
"""Inputs and outputs of FLUX.1's linear layers."""
_KERNELS: dict[str, tuple[AttentionKernel, ...]] = {"cuda": MEASURED, "cpu": ("math",)}


def measure_limits(scale_name: str) -> Iterator[Row]:
    """Rows of matrix products in bf16 and float8, of attention by kernel and size, and of a copy within the memory."""
    scale = SCALES[scale_name]
    device = torch.device(scale.device)
    divisor = 1 if scale.device == "cuda" else 64
    tokens = _tokens(scale.large) + TEXT_TOKENS
    shapes = {name: (tokens, inputs, outputs) for name, (inputs, outputs) in LINEARS.items()}
    shapes["square"] = (8192, 8192, 8192)
    yield _copy_row(device, 2**31 // divisor**2)
    for name, (rows, inputs, outputs) in shapes.items():
        yield from _product_rows(device, name, rows // divisor, inputs // divisor, outputs // divisor)
    for size in (scale.large, scale.medium, scale.small):
        yield from _attention_rows(device, _tokens(size) + TEXT_TOKENS // divisor)


def _tokens(size: tuple[int, int]) -> int:
    width, height = size
    return width * height // 256


def _copy_row(device: torch.device, size_bytes: int) -> Row:
    source = torch.empty(size_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source), device)
    return {
        "topic": "limit",
        "what": "copy within device memory",
        "ms": 1000 * seconds,
        "gb_per_s": round(2 * size_bytes / seconds / 1e9, 3),
    }


def _product_rows(device: torch.device, name: str, rows: int, inputs: int, outputs: int) -> Iterator[Row]:
    """Operands are random: products of zeros run faster."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = torch.randn(rows, inputs, device=device, dtype=dtype)
    weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
    row = {"topic": "limit", "what": "product", "layer": name, "shape": f"{rows} x {inputs} x {outputs}"}
    operations = 2 * rows * inputs * outputs
    yield row | _rate("bf16", lambda: linear(x, weight), device, operations)
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return
    x8, weight8 = x.to(FLOAT8), weight.to(FLOAT8)
    for kernel, scales in (
        ("row-wise float8", (torch.ones(rows, 1, device=device), torch.ones(1, outputs, device=device))),
        ("tensor-wise float8", (torch.ones((), device=device), torch.ones((), device=device))),
    ):
        yield row | _rate(kernel, _scaled_product(x8, weight8, scales), device, operations)


def _scaled_product(x: Tensor, weight: Tensor, scales: tuple[Tensor, Tensor]) -> Callable[[], Any]:
    return lambda: torch._scaled_mm(
        x, weight.t(), scale_a=scales[0], scale_b=scales[1], out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _attention_rows(device: torch.device, tokens: int) -> Iterator[Row]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    query, key, value = (torch.randn(1, tokens, HEADS, HEAD_WIDTH, device=device, dtype=dtype) for _ in range(3))
    row = {"topic": "limit", "what": "attention", "tokens": tokens}
    operations = 4 * HEADS * HEAD_WIDTH * tokens**2
    for name in _KERNELS[device.type]:
        try:
            kernel = KERNELS[name]()
        except (ImportError, AttributeError):
            yield row | {"kernel": name, "unavailable": "not installed"}
            continue
        yield row | _rate(name, partial(kernel, query, key, value), device, operations)


def _rate(kernel: str, function: Callable[[], Any], device: torch.device, operations: int) -> Row:
    """The rate of a kernel, or why it does not run here: old versions of torch have no rowwise float8 on a CPU."""
    try:
        seconds = _seconds(function, device)
    except RuntimeError as error:
        return {"kernel": kernel, "unavailable": str(error).partition("\n")[0][:200]}
    return {"kernel": kernel, "ms": round(1000 * seconds, 4), "tflops_per_s": round(operations / seconds / 1e12, 4)}


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Median over `ROUNDS` rounds of the mean duration in a round."""
    first_s = _round_s(function, device, calls=1)
    calls = max(1, min(100, round(TARGET_S / _round_s(function, device, calls=1)))) if first_s < 1 else 1
    return statistics.median(_round_s(function, device, calls) for _ in range(ROUNDS))


def _round_s(function: Callable[[], Any], device: torch.device, calls: int) -> float:
    synchronize(device)
    start_s = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return (time.perf_counter() - start_s) / calls
