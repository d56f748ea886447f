"""The choice of the attention kernel, and its equality with that of diffusers on a CPU."""

import sys
from functools import partial
from types import ModuleType

import pytest
import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from serve.engine import attention
from serve.engine.attention import (
    KERNELS,
    MEASURED,
    Attention,
    choose,
    choose_attention,
    choose_kernel,
    find_fault,
    measure_s,
    native_attention,
    usable_kernels,
)
from serve.settings import AttentionKernel
from tests.logs import Logs

CPU = torch.device("cpu")
HEADS, HEAD_DIM = 2, 48


def make_inputs(images: int, tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, images, tokens, HEADS, HEAD_DIM, generator=generator).to(dtype)
    return query, key, value


@pytest.mark.parametrize("setting", ["auto", "cudnn", "flash4", "math"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("images", [1, 3])
def test_cpu_attention_equals_that_of_diffusers_to_the_bit(
    setting: AttentionKernel, dtype: torch.dtype, images: int
) -> None:
    inputs = make_inputs(images, 77, dtype)
    chosen = choose_attention(setting, CPU, HEADS, HEAD_DIM, dtype)
    assert torch.equal(chosen(*inputs), dispatch_attention_fn(*inputs))


@pytest.mark.usefixtures("_fresh_compiler")
def test_native_attention_is_traced_in_one_graph() -> None:
    inputs = make_inputs(1, 20)
    compiled = torch.compile(native_attention, backend="eager", fullgraph=True, dynamic=True)
    assert torch.equal(compiled(*inputs), native_attention(*inputs))


@pytest.mark.parametrize(
    ("times_s", "chosen"),
    [
        pytest.param({"cudnn": [1.0, 4.0], "flash": [2.0, 8.0]}, "cudnn", id="the first one is faster"),
        pytest.param({"cudnn": [2.0, 4.0], "flash": [1.0, 8.0]}, "cudnn", id="equal means"),
        pytest.param({"cudnn": [1.0, 10.0], "flash": [2.0, 4.0]}, "flash", id="faster with many tokens"),
        pytest.param({"cudnn": [3.0, 10.0], "flash": [1.0, 12.0]}, "flash", id="faster with few tokens"),
        pytest.param({"cudnn": [1.0, 1.0], "flash": [0.91, 0.91]}, "cudnn", id="less than 10 % faster"),
        pytest.param({"cudnn": [1.0, 1.0], "flash": [0.89, 0.89]}, "flash", id="more than 10 % faster"),
        pytest.param(
            {"cudnn": [1.0], "flash4": [0.85], "flash": [0.8]}, "flash4", id="a little faster than the second"
        ),
    ],
)
def test_less_preferred_kernel_must_be_clearly_faster(
    times_s: dict[AttentionKernel, list[float]], chosen: AttentionKernel
) -> None:
    assert choose(times_s) == chosen


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient", "math"])
def test_operators_of_a_gpu_accept_the_arguments(name: AttentionKernel) -> None:
    inputs = torch.empty(2, 333, 24, 128, device="cuda", dtype=torch.bfloat16)
    result = KERNELS[name]()(inputs, inputs, inputs)
    assert (result.shape, result.dtype, result.device.type) == (inputs.shape, inputs.dtype, "cuda")


def wrong(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return 1.1 * native_attention(query, key, value)


def not_a_number(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.nan * query


def other_layout(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return native_attention(query, key, value).transpose(1, 2)


def failing(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    raise RuntimeError("no kernel for this GPU")


def missing() -> Attention:
    raise ModuleNotFoundError("flash_attn")


FAULTY = (wrong, not_a_number, other_layout, failing)


def use_kernels(monkeypatch: pytest.MonkeyPatch, **kernels: Attention) -> None:
    """The others are not installed."""
    for name in MEASURED:
        monkeypatch.setitem(
            KERNELS, name, (lambda kernel: lambda: kernel)(kernels[name]) if name in kernels else missing
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_attention_has_no_fault(dtype: torch.dtype) -> None:
    assert find_fault(native_attention, partial(make_inputs, dtype=dtype)) is None


@pytest.mark.parametrize("kernel", FAULTY)
def test_faulty_kernel_is_skipped_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, logs: Logs, kernel: Attention
) -> None:
    use_kernels(monkeypatch, cudnn=kernel, efficient=native_attention)
    assert usable_kernels(MEASURED, make_inputs) == {"efficient": native_attention}
    assert [record.levelname for record in logs.records] == ["WARNING"]
    assert "cudnn" in logs.text


def test_missing_kernel_is_skipped_without_a_warning(monkeypatch: pytest.MonkeyPatch, logs: Logs) -> None:
    use_kernels(monkeypatch, cudnn=native_attention)
    assert usable_kernels(MEASURED, make_inputs) == {"cudnn": native_attention}
    assert not logs.records


def test_auto_takes_a_faster_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    math = KERNELS["math"]()
    use_kernels(monkeypatch, cudnn=failing, flash=native_attention, efficient=math)
    times_s = {native_attention: 2.0, math: 1.0}
    measured_tokens = []

    def measure(kernel: Attention, inputs: tuple[Tensor, Tensor, Tensor]) -> float:
        measured_tokens.append(inputs[0].shape[1])
        return times_s[kernel]

    monkeypatch.setattr(attention, "measure_s", measure)
    assert choose_kernel("auto", make_inputs) is math
    assert sorted(measured_tokens) == [1536, 1536, 4608, 4608]


def test_set_kernel_is_used_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    use_kernels(monkeypatch, efficient=native_attention)
    monkeypatch.setattr(attention, "measure_s", None)
    assert choose_kernel("efficient", make_inputs) is native_attention


@pytest.mark.parametrize("setting", ["flash", "flash4"], ids=["faulty", "missing"])
def test_set_kernel_that_does_not_work_is_replaced_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, logs: Logs, setting: AttentionKernel
) -> None:
    use_kernels(monkeypatch, flash=failing, efficient=native_attention)
    monkeypatch.setattr(attention, "measure_s", lambda kernel, inputs: 1.0)
    assert choose_kernel(setting, make_inputs) is native_attention
    assert {record.levelname for record in logs.records} == {"WARNING"}


def test_native_attention_is_used_if_no_kernel_works(monkeypatch: pytest.MonkeyPatch) -> None:
    use_kernels(monkeypatch, cudnn=failing)
    assert choose_kernel("auto", make_inputs) is native_attention


def test_measured_time_is_positive() -> None:
    assert measure_s(native_attention, make_inputs(1, 8)) > 0


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("returns_tuple", [True, False])
def test_flash4_of_the_package_is_traced_as_one_operator(monkeypatch: pytest.MonkeyPatch, returns_tuple: bool) -> None:
    calls = []

    def flash_attn_func(query: Tensor, key: Tensor, value: Tensor) -> object:
        calls.append(query.shape)
        result = native_attention(query, key, value).contiguous()
        return (result, None) if returns_tuple else result

    package = ModuleType("flash_attn.cute")
    monkeypatch.setattr(package, "flash_attn_func", flash_attn_func, raising=False)
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", package)
    inputs = make_inputs(1, 20)
    flash4 = KERNELS["flash4"]()
    compiled = torch.compile(flash4, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), native_attention(*inputs))
    assert calls == [(1, 20, HEADS, HEAD_DIM)]


def test_flash4_is_missing_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn.cute", None)
    assert not usable_kernels(["flash4"], make_inputs)
