"""Compiled blocks: compiled once for all sizes and LoRAs, and equal to uncompiled ones."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from serve.engine.attention import native_attention
from serve.engine.block_runner import GATHERED_SHARE, CompiledBlocks, EagerBlocks
from serve.engine.checkpoint import Checkpoint
from serve.engine.compilation import Backend
from serve.engine.flux_transformer import FluxTransformer
from serve.engine.latents import LatentGrid
from serve.engine.lora_layers import LoraSlots, SlotSelection
from serve.settings import Precision
from tests.logs import Logs
from tests.unit.engine.checkpoints import SMALL, Checkpoints
from tests.unit.engine.flux_inputs import velocity
from tests.unit.engine.loras import make_kronecker_lora, make_lora, write_to_slots

pytestmark = pytest.mark.usefixtures("_fresh_compiler")
TWO_OF_EACH = replace(SMALL, double_blocks=2, single_blocks=2)
VARIANTS = 2 * 2 * 2
"""Double and single blocks, one image and several, without and with LoRAs."""


def _counting_backend(compilations: list[int]) -> Callable[..., Any]:
    """A backend for `torch.compile` that runs traced graphs unchanged and counts them."""

    def backend(graph: torch.fx.GraphModule, _: Sequence[Tensor]) -> Callable[..., Any]:
        compilations.append(1)
        return graph.forward

    return backend


class Transformers:
    """A compiled and an uncompiled transformer with the same LoRA slots."""

    def __init__(self, checkpoint: Checkpoint, backend: Backend, lora_bytes: int = 2**20) -> None:
        network = checkpoint.transformer
        for module in network.modules():
            module._forward_hooks.clear()
        self._checkpoint = checkpoint
        self.slots = LoraSlots({"transformer": network}, lora_bytes, product_per_batch=True)
        self.eager_blocks = EagerBlocks(network, self.slots, native_attention)
        self.compiled_blocks = CompiledBlocks(network, self.slots, native_attention, backend)
        self.eager = FluxTransformer(network, self.slots, self.eager_blocks)
        self.compiled = FluxTransformer(network, self.slots, self.compiled_blocks)

    def load(self, seed: int, slots: range, layers: str = "", scale: float = 0.7) -> SlotSelection:
        lora = make_lora(self._checkpoint, seed, len(slots), layers)
        matrices = {f"transformer.{name}": each for name, each in lora.transformer.items()}
        write_to_slots(self.slots, slots, matrices)
        return SlotSelection(dict.fromkeys(slots, scale), frozenset(matrices))

    def velocities(
        self, grid: LatentGrid, selections: Sequence[SlotSelection | None], text_tokens: int = 8
    ) -> list[Tensor]:
        """Compiled and uncompiled."""
        return [
            velocity(self._checkpoint, each, self.slots, grid, selections, text_tokens)
            for each in (self.compiled, self.eager)
        ]


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp8", marks=pytest.mark.slow_compile)])
def test_nothing_is_compiled_after_warm_up(checkpoints: Checkpoints, precision: Precision) -> None:
    compilations = list[int]()
    transformers = Transformers(
        checkpoints.load("dev", precision, geometry=TWO_OF_EACH), _counting_backend(compilations), lora_bytes=2**23
    )
    # More slots than are gathered at a time are selected, too.
    assert 32 > transformers.slots.count // GATHERED_SHARE >= 16
    # Equal numbers of tokens need not be equal later.
    transformers.compiled.warm_up(8, 8)
    assert len(compilations) == VARIANTS
    first, attention = transformers.load(1, range(1, 5)), transformers.load(2, range(5, 25), r"attn\.", -1.5)
    batches: list[tuple[LatentGrid, list[SlotSelection | None], int]] = [
        (LatentGrid(3, 4), [None], 8),
        (LatentGrid(2, 2), [first], 5),
        (LatentGrid(4, 4), [first, None, attention], 8),
        (LatentGrid(1, 2), [attention, attention, first, None], 3),
        (LatentGrid(3, 4), [None, None], 8),
    ]
    for grid, selections, text_tokens in batches:
        compiled, eager = transformers.velocities(grid, selections, text_tokens)
        assert (compiled.float() - eager.float()).norm() <= 0.01 * eager.float().norm()
    assert len(compilations) == VARIANTS


def test_kronecker_loras_run_uncompiled(checkpoints: Checkpoints) -> None:
    compilations = list[int]()
    checkpoint = checkpoints.load("dev", "bf16")
    transformers = Transformers(checkpoint, _counting_backend(compilations))
    lora = make_kronecker_lora(checkpoint, 6, layers=r"attn\.to_|ff\.net")
    kroneckers = transformers.slots.write_kroneckers(range(1, lora.slots + 1), lora.kroneckers)
    selection = SlotSelection({}, frozenset(), {name: [(each, 0.5)] for name, each in kroneckers.items()})
    compiled, eager = transformers.velocities(LatentGrid(2, 2), [selection, None])
    assert torch.equal(compiled, eager)
    assert not compilations


def test_no_output_is_changed_in_place(checkpoints: Checkpoints) -> None:
    """The compiler cannot fuse a product that adds in place."""
    operations: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Sequence[Tensor]) -> Callable[..., Any]:
        operations.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_method")
        return graph.forward

    transformers = Transformers(checkpoints.load("dev", "bf16"), backend)
    transformers.velocities(LatentGrid(2, 2), [transformers.load(1, range(1, 5))])
    assert operations
    assert "addmm_" not in operations


def test_kernels_depend_only_on_loras_outside_of_compiled_blocks(checkpoints: Checkpoints) -> None:
    transformers = Transformers(checkpoints.load("dev", "bf16"), "eager")
    in_block, outside = "transformer.transformer_blocks.0.attn.to_q", "transformer.proj_out"
    for blocks, layers in ((transformers.compiled_blocks, {outside}), (transformers.eager_blocks, {in_block, outside})):
        assert blocks.kernel_layers(frozenset({in_block, outside})) == layers


@pytest.mark.slow_compile
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_inductor_is_close_to_uncompiled_blocks(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: Logs
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    transformers = Transformers(checkpoints.load("dev", "float32", geometry=SMALL), "inductor")
    first = transformers.load(1, range(1, 5))
    compiled, eager = transformers.velocities(LatentGrid(2, 2), [first, None])
    assert not logs.errors, logs.text
    assert (compiled - eager).norm() <= 1e-4 * eager.norm()
