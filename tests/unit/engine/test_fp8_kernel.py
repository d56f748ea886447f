"""The choice of the float8 kernel by device, and the check of a device's product."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from serve.engine import fp8_kernel
from serve.engine.float8_linear import (
    Float8Linear,
    Product,
    QuantizedRows,
    emulated_rowwise_product,
    rowwise_product,
)
from serve.engine.fp8_kernel import Capability, KernelName, choose, choose_fp8_kernel, find_fault, rowwise_layers
from serve.settings import Fp8Kernel
from tests.logs import Logs
from tests.unit.engine.checkpoints import Checkpoints

HOPPER, ADA, AMPERE, CPU = (9, 0), (8, 9), (8, 6), None


@pytest.mark.parametrize(
    ("setting", "capability", "kernel"),
    [
        ("auto", HOPPER, "rowwise"),
        ("auto", ADA, "rowwise"),
        ("auto", (12, 0), "rowwise"),
        ("auto", AMPERE, "quanto"),
        ("auto", CPU, "quanto"),
        ("rowwise", HOPPER, "rowwise"),
        ("rowwise", AMPERE, "emulated"),
        ("rowwise", CPU, "emulated"),
        ("quanto", HOPPER, "quanto"),
        ("quanto", CPU, "quanto"),
    ],
)
def test_kernel_is_chosen_by_setting_and_capability(
    setting: Fp8Kernel, capability: Capability | None, kernel: KernelName
) -> None:
    assert choose(setting, capability, torch.bfloat16).kernel == kernel


@pytest.mark.parametrize(("setting", "kernel"), [("auto", "quanto"), ("rowwise", "emulated")])
def test_float8_units_are_used_only_in_bf16(setting: Fp8Kernel, kernel: KernelName) -> None:
    choice = choose(setting, HOPPER, torch.float16)
    assert choice.kernel == kernel
    assert "float16" in choice.reason


@pytest.mark.parametrize("setting", ["auto", "rowwise", "quanto"])
def test_quanto_is_chosen_without_suitable_layers(setting: Fp8Kernel) -> None:
    assert choose(setting, HOPPER, None).kernel == "quanto"


def test_reason_names_the_capability() -> None:
    assert "8.6" in choose("auto", AMPERE, torch.bfloat16).reason


class Transformer(nn.Module):
    """Some layers of a transformer, by the names of diffusers."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.x_embedder = nn.Linear(16, width)
        self.transformer_blocks = nn.ModuleList([nn.Linear(width, 64), nn.Linear(width, 40), nn.LayerNorm(width)])
        self.single_transformer_blocks = nn.ModuleList([nn.Linear(width, width)])
        self.norm_out = nn.Sequential(nn.Linear(width, 64))
        self.proj_out = nn.Linear(width, 16)
        self.bfloat16().requires_grad_(False)


def test_linear_layers_of_blocks_with_sides_of_multiples_of_16_are_quantized() -> None:
    paths = [path for path, _ in rowwise_layers(Transformer())]
    assert paths == ["transformer_blocks.0", "single_transformer_blocks.0", "norm_out.0"]


def test_all_block_layers_of_a_checkpoint_are_quantized(checkpoints: Checkpoints) -> None:
    transformer = checkpoints.get("dev").transformer
    others = {path for path, layer in transformer.named_modules() if isinstance(layer, nn.Linear)} - {
        path for path, _ in rowwise_layers(transformer)
    }
    assert {path.partition(".")[0] for path in others} == {
        "time_text_embed",
        "context_embedder",
        "x_embedder",
        "proj_out",
    }


def off_by_a_factor(inputs: QuantizedRows, layer: Float8Linear) -> Tensor:
    return 1.1 * emulated_rowwise_product(inputs, layer)


def not_a_number(inputs: QuantizedRows, layer: Float8Linear) -> Tensor:
    return emulated_rowwise_product(inputs, layer) * torch.nan


def unsupported(inputs: QuantizedRows, layer: Float8Linear) -> Tensor:
    raise NotImplementedError("no such kernel")


FAULTY = pytest.mark.parametrize(
    ("product", "reason"), [(off_by_a_factor, "relative error"), (not_a_number, "nan"), (unsupported, "no such kernel")]
)


def layer_with(product: Product) -> Float8Linear:
    return Float8Linear(nn.Linear(64, 32, dtype=torch.bfloat16), product)


def test_right_product_has_no_fault() -> None:
    assert find_fault(layer_with(rowwise_product)) is None


@FAULTY
def test_wrong_and_failing_products_have_a_fault(product: Product, reason: str) -> None:
    fault = find_fault(layer_with(product))
    assert fault is not None
    assert reason in fault


class FakeGpu:
    """Reports the capability of an H100. The layers stay on the CPU, which multiplies float8 too."""

    type = "cuda"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: HOPPER)
        monkeypatch.setattr(nn.Module, "to", lambda module, device: module)


def test_working_product_in_float8_is_chosen_on_a_gpu(monkeypatch: pytest.MonkeyPatch, logs: Logs) -> None:
    device: Any = FakeGpu(monkeypatch)
    assert choose_fp8_kernel("auto", Transformer(), device) == "rowwise"
    assert not logs.records, "no warning"


@FAULTY
def test_quanto_is_chosen_with_a_warning_if_the_product_is_faulty(
    monkeypatch: pytest.MonkeyPatch, logs: Logs, product: Product, reason: str
) -> None:
    monkeypatch.setattr(fp8_kernel, "rowwise_product", product)
    device: Any = FakeGpu(monkeypatch)
    assert choose_fp8_kernel("rowwise", Transformer(), device) == "quanto"
    assert [record.levelname for record in logs.records] == ["WARNING"]
    assert reason in logs.text


def test_choice_is_logged_with_its_reason(logs: Logs) -> None:
    fp8_kernel._log.setLevel(logging.INFO)
    try:
        choose_fp8_kernel("auto", Transformer(), torch.device("cpu"))
    finally:
        fp8_kernel._log.setLevel(logging.NOTSET)
    assert "quanto" in logs.text
    assert "CPU" in logs.text


def test_choice_leaves_the_layers_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = Transformer()
    device: Any = FakeGpu(monkeypatch)
    choose_fp8_kernel("auto", transformer, device)
    assert {weight.dtype for weight in transformer.parameters()} == {torch.bfloat16}
