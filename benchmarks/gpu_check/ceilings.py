"""Measures the ceilings of the device: matrix products and attention in FLUX.1's shapes, and memory bandwidth."""

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention

from benchmarks.gpu_check.runs import Row
from benchmarks.gpu_check.scale import SCALES
from serve.engine.device import synchronize

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
FLOAT8 = torch.float8_e4m3fn
_ATTENTION = {
    "cuda": {
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    },
    "cpu": {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH},
}


def measure_ceilings(scale_name: str) -> Iterator[Row]:
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
        "topic": "ceiling",
        "what": "copy within device memory",
        "ms": 1000 * seconds,
        "gb_per_s": round(2 * size_bytes / seconds / 1e9, 3),
    }


def _product_rows(device: torch.device, name: str, rows: int, inputs: int, outputs: int) -> Iterator[Row]:
    """Operands are random: products of zeros run faster."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = torch.randn(rows, inputs, device=device, dtype=dtype)
    weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
    row = {"topic": "ceiling", "what": "product", "layer": name, "shape": f"{rows} x {inputs} x {outputs}"}
    operations = 2 * rows * inputs * outputs
    yield row | _rate("bf16", lambda: linear(x, weight), device, operations)
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        return
    x8, weight8 = x.to(FLOAT8), weight.to(FLOAT8)
    for kernel, scales in (
        ("float8, a scale per row", (torch.ones(rows, 1, device=device), torch.ones(1, outputs, device=device))),
        ("float8, a scale per tensor", (torch.ones((), device=device), torch.ones((), device=device))),
    ):
        yield row | _rate(kernel, _scaled_product(x8, weight8, scales), device, operations)


def _scaled_product(x: Tensor, weight: Tensor, scales: tuple[Tensor, Tensor]) -> Callable[[], Any]:
    return lambda: torch._scaled_mm(
        x, weight.t(), scale_a=scales[0], scale_b=scales[1], out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _attention_rows(device: torch.device, tokens: int) -> Iterator[Row]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    query, key, value = (torch.randn(1, HEADS, tokens, HEAD_WIDTH, device=device, dtype=dtype) for _ in range(3))
    row = {"topic": "ceiling", "what": "attention", "tokens": tokens}
    operations = 4 * HEADS * HEAD_WIDTH * tokens**2
    kernels: dict[str, tuple[Callable[[], Any], AbstractContextManager[Any]]] = {
        name: (lambda: scaled_dot_product_attention(query, key, value), sdpa_kernel([backend]))
        for name, backend in _ATTENTION[device.type].items()
    }
    if device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None:
        kernels["flash4"] = (_flash4(query, key, value), nullcontext())
    for kernel, (attend, context) in kernels.items():
        with context:
            rate = _rate(kernel, attend, device, operations)
        yield row | rate


def _flash4(query: Tensor, key: Tensor, value: Tensor) -> Callable[[], Any]:
    """FlashAttention 4, which the package `flash-attn-4` installs. It has the tokens before the heads."""

    def attend() -> Any:
        return importlib.import_module("flash_attn.cute").flash_attn_func(
            *(each.transpose(1, 2) for each in (query, key, value))
        )

    return attend


def _rate(kernel: str, function: Callable[[], Any], device: torch.device, operations: int) -> Row:
    """The rate of a kernel, or why it does not run here: old versions of torch have no rowwise float8 on a CPU."""
    try:
        seconds = _seconds(function, device)
    except (RuntimeError, ImportError) as error:
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
