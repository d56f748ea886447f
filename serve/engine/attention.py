"""Chooses the attention kernel of the transformer, on a GPU by a measurement at start-up."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from serve.engine.device import synchronize
from serve.settings import AttentionKernel

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query, key, value), each [batch, tokens, heads, head_dim]: the result in the same shape."""
MEASURED_TOKENS = (1536, 4608)
"""Those of FLUX.1 [dev] at 512x512 and at 1024x1024."""
MAX_ERROR = 0.01
"""Relative to the result in float32; rounding to bf16 alone gives 0.003."""
_CHECKED_SHAPE = (2, 333)
"""Images and tokens."""
_RUNS = 10
_log = logging.getLogger(__name__)


def native_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """torch chooses the kernel. Follows diffusers' `_native_attention`, to the bit."""
    query, key, value = (tensor.permute(0, 2, 1, 3) for tensor in (query, key, value))
    return scaled_dot_product_attention(query, key, value).permute(0, 2, 1, 3)


def _from_aten(name: str, *arguments: object) -> Attention:
    """One kernel of `scaled_dot_product_attention`. Raises AttributeError if this torch does not have it.

    Each kernel is an operator, so tracing needs no context manager, and no other kernel can run unnoticed.
    """
    operator = getattr(torch.ops.aten, name)

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outputs = operator(*(tensor.permute(0, 2, 1, 3) for tensor in (query, key, value)), *arguments)
        result: Tensor = outputs[0]
        return result.permute(0, 2, 1, 3)

    return attention


def _flash4() -> Attention:
    """FlashAttention 4 as an operator, because torch cannot trace its code. Raises ImportError if it is missing."""
    from flash_attn.cute import flash_attn_func

    def flash4(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outputs = flash_attn_func(query, key, value)
        result: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
        return result

    operator = torch.library.custom_op("flux_serve::flash4", flash4, mutates_args=())
    operator.register_fake(lambda query, key, value: torch.empty_like(query, memory_format=torch.contiguous_format))
    return operator


KERNELS: dict[AttentionKernel, Callable[[], Attention]] = {
    # attn_bias, compute_log_sumexp, dropout_p, is_causal, return_debug_mask
    "cudnn": partial(_from_aten, "_scaled_dot_product_cudnn_attention", None, False, 0.0, False, False),
    "flash4": _flash4,
    "flash": partial(_from_aten, "_scaled_dot_product_flash_attention", 0.0, False, False),
    "efficient": partial(_from_aten, "_scaled_dot_product_efficient_attention", None, False),
    "math": partial(_from_aten, "_scaled_dot_product_attention_math"),
}
MEASURED: tuple[AttentionKernel, ...] = ("cudnn", "flash4", "flash", "efficient")
"""The candidates of `auto`, in order of preference; `math` is never the fastest."""
MIN_GAIN = 0.1
"""Share of its time that a less preferred kernel must save. Kernels that are about equally fast give other bits, so
replicas should not choose between them by chance."""


def choose_attention(
    setting: AttentionKernel, device: torch.device, heads: int, head_dim: int, dtype: torch.dtype
) -> Attention:
    """The attention for these heads on `device`. On a CPU it is always torch's native one."""
    if device.type != "cuda":
        return native_attention
    return choose_kernel(setting, partial(_make_inputs, heads=heads, head_dim=head_dim, device=device, dtype=dtype))


InputMaker = Callable[[int, int], tuple[Tensor, Tensor, Tensor]]
"""(images, tokens): random queries, keys and values."""


def choose_kernel(setting: AttentionKernel, make_inputs: InputMaker) -> Attention:
    """The kernel that is set, if it works and its result is right, otherwise the choice among those of which this is
    true."""
    if setting != "auto":
        if attention := usable_kernels([setting], make_inputs).get(setting):
            _log.info("attention kernel: %s, because it is set", setting)
            return attention
        _log.warning("the attention kernel %s is set, but it cannot be used, so another one is", setting)
    usable = usable_kernels(MEASURED, make_inputs)
    return _choose_by_time(usable, make_inputs) if usable else native_attention


def _make_inputs(
    images: int, tokens: int, heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    shape = (3, images, tokens, heads, head_dim)
    query, key, value = torch.randn(shape, generator=generator, device=device).to(dtype)
    return query, key, value


def usable_kernels(names: Sequence[AttentionKernel], make_inputs: InputMaker) -> dict[AttentionKernel, Attention]:
    """The kernels that are installed and right. Logs a warning for each that is installed and not right."""
    usable = {}
    for name in names:
        try:
            attention = KERNELS[name]()
        except (ImportError, AttributeError):
            _log.info("the attention kernel %s is not installed", name)
            continue
        fault = find_fault(attention, make_inputs)
        if fault is None:
            usable[name] = attention
        else:
            _log.warning("the attention kernel %s is not used: %s", name, fault)
    return usable


@torch.no_grad()
def find_fault(attention: Attention, make_inputs: InputMaker) -> str | None:
    """Why `attention` cannot be used; None if its result is right."""
    inputs = make_inputs(*_CHECKED_SHAPE)
    query, key, value = (tensor.float() for tensor in inputs)
    expected = KERNELS["math"]()(query, key, value)
    try:
        result = attention(*inputs).float()
        error = float((result - expected).norm() / expected.norm())
    except Exception as failure:
        return f"{type(failure).__name__}: {failure}"
    return None if error <= MAX_ERROR else f"its relative error is {error:.3f}"


def _choose_by_time(kernels: Mapping[AttentionKernel, Attention], make_inputs: InputMaker) -> Attention:
    times_s = {
        name: [measure_s(attention, make_inputs(1, tokens)) for tokens in MEASURED_TOKENS]
        for name, attention in kernels.items()
    }
    name = choose(times_s)
    measured = ", ".join(f"{each} {_milliseconds(times)}" for each, times in times_s.items())
    tokens = " and ".join(map(str, MEASURED_TOKENS))
    _log.info("attention kernel: %s; in ms for %s tokens: %s", name, tokens, measured)
    return kernels[name]


def choose(times_s: Mapping[AttentionKernel, list[float]]) -> AttentionKernel:
    """The most preferred kernel, unless another one is clearly faster. Kernels are passed in order of preference.

    Their times are compared by geometric means, so that small and large numbers of tokens count alike.
    """
    chosen, *others = times_s
    for name in others:
        if _mean(times_s[name]) <= (1 - MIN_GAIN) * _mean(times_s[chosen]):
            chosen = name
    return chosen


def _mean(times_s: list[float]) -> float:
    return float(prod(times_s) ** (1 / len(times_s)))


@torch.no_grad()
def measure_s(attention: Attention, inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    """Seconds of one call, the mean of several after a first one."""
    device = inputs[0].device
    attention(*inputs)
    synchronize(device)
    start_s = time.perf_counter()
    for _ in range(_RUNS):
        attention(*inputs)
    synchronize(device)
    return (time.perf_counter() - start_s) / _RUNS


def _milliseconds(times_s: list[float]) -> str:
    return "/".join(f"{1000 * time_s:.2f}" for time_s in times_s)
