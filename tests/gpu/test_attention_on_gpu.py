"""The attention kernels on a GPU: those that torch has work, equal math attention, and are traced in one graph."""

from collections.abc import Mapping
from functools import partial

import pytest
import torch
from torch import Tensor

from serve.engine import attention
from serve.engine.attention import KERNELS, choose, choose_attention, find_fault, usable_kernels
from serve.settings import AttentionKernel
from tests.gpu.helpers import DEVICE, LoadOnGpu
from tests.logs import Logs

HEADS, HEAD_DIM = 24, 128


def make_inputs(
    images: int, tokens: int, head_dim: int = HEAD_DIM, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, images, tokens, HEADS, head_dim, device=DEVICE).to(dtype)
    return query, key, value


@pytest.mark.parametrize("head_dim", [HEAD_DIM, 48], ids=["FLUX.1", "embedded"])
@pytest.mark.parametrize("name", ["flash", "efficient", "math"])
def test_kernels_of_torch_equal_math_attention(name: AttentionKernel, head_dim: int) -> None:
    assert find_fault(KERNELS[name](), partial(make_inputs, head_dim=head_dim)) is None


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0), reason="needs a Hopper GPU or newer"
)
@pytest.mark.parametrize("tokens", [333, 512 + 1024, 512 + 4096])
def test_cudnn_equals_flash_at_every_size(tokens: int) -> None:
    inputs = make_inputs(2, tokens)
    cudnn, flash = (KERNELS[name]()(*inputs).float() for name in ("cudnn", "flash"))
    assert (cudnn - flash).norm() <= 0.01 * flash.norm()


@pytest.mark.parametrize("name", ["cudnn", "flash4", "flash", "efficient"])
def test_usable_kernels_are_compiled_once_for_all_numbers_of_tokens(name: AttentionKernel) -> None:
    kernels = usable_kernels([name], make_inputs)
    if name not in kernels:
        pytest.skip("is not usable on this GPU")
    torch.compiler.reset()
    compiled = torch.compile(kernels[name], fullgraph=True, dynamic=True)
    for tokens in (512, 4608, 777):
        inputs = make_inputs(2, tokens)
        with torch.compiler.set_stance("default" if tokens == 512 else "fail_on_recompile"):
            actual = compiled(*inputs).float()
        expected = kernels[name](*inputs).float()
        assert (actual - expected).norm() <= 0.01 * expected.norm()


def test_auto_chooses_a_kernel_without_warnings(logs: Logs) -> None:
    chosen = choose_attention("auto", torch.device(DEVICE), HEADS, HEAD_DIM, torch.bfloat16)
    assert find_fault(chosen, make_inputs) is None
    assert not logs.records


def test_auto_chooses_the_same_kernel_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise replicas would give images with other bits."""
    chosen: list[AttentionKernel] = []

    def record(times_s: Mapping[AttentionKernel, list[float]]) -> AttentionKernel:
        chosen.append(choose(times_s))
        return chosen[-1]

    monkeypatch.setattr(attention, "choose", record)
    for _ in range(3):
        choose_attention("auto", torch.device(DEVICE), HEADS, HEAD_DIM, torch.bfloat16)
    assert len(set(chosen)) == 1


def test_attention_of_a_checkpoint_suits_its_transformer(load_on_gpu: LoadOnGpu) -> None:
    checkpoint = load_on_gpu()
    head_dim = checkpoint.transformer.config.attention_head_dim
    assert find_fault(checkpoint.attention, partial(make_inputs, head_dim=head_dim)) is None
