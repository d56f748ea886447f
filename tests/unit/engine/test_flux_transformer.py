"""The transformer's pass equals that of diffusers to the bit, with modulation computed before or in each step."""

from typing import Any

import pytest
import torch
from torch import Tensor

from serve.engine.attention import native_attention
from serve.engine.block_runner import EagerBlocks
from serve.engine.checkpoint import Checkpoint
from serve.engine.cuda_graphs import CAPTURE_USES, CudaGraphs
from serve.engine.flux_blocks import Rotary
from serve.engine.flux_transformer import FluxTransformer
from serve.engine.latents import LatentGrid, LatentSpace
from serve.engine.lora_layers import LoraSlots, SlotSelection
from serve.engine.lora_products import BatchLoras
from serve.model_specs import VariantName
from serve.settings import Precision
from tests.unit.engine.checkpoints import WIDE, Checkpoints
from tests.unit.engine.flux_inputs import condition, make_latents, make_prompt, schedule, velocity
from tests.unit.engine.loras import make_lora, write_to_slots
from tests.unit.engine.test_cuda_graphs import FakeCapture

GRID, OTHER_GRID = LatentGrid(3, 4), LatentGrid(2, 2)
PRECISIONS = pytest.mark.parametrize("precision", ["float32", "bf16", "fp8"])
VARIANTS = pytest.mark.parametrize("variant", ["dev", "schnell"])


def _make(checkpoint: Checkpoint, precompute: bool = True, graphs: CudaGraphs | None = None) -> FluxTransformer:
    transformer, slots = checkpoint.transformer, checkpoint.lora_slots
    return FluxTransformer(transformer, slots, EagerBlocks(transformer, slots, native_attention), precompute, graphs)


@torch.no_grad()
def _diffusers_velocity(checkpoint: Checkpoint, seed: int, step: int) -> Tensor:
    """As diffusers' `FluxPipeline` calls its transformer."""
    prompt = make_prompt(checkpoint, seed)
    latents = make_latents(checkpoint, seed, GRID.tokens)
    timestep = torch.tensor([schedule(checkpoint, GRID).timesteps[step]]).to(latents.dtype)
    result: Tensor = checkpoint.transformer(
        hidden_states=latents,
        timestep=timestep / 1000,
        guidance=torch.full([1], 3.5, dtype=torch.float32) if checkpoint.guidance_embeds else None,
        pooled_projections=prompt.pooled_prompt_embeds,
        encoder_hidden_states=prompt.prompt_embeds,
        txt_ids=torch.zeros(prompt.prompt_embeds.shape[1], 3, dtype=latents.dtype),
        img_ids=LatentSpace(checkpoint).img_ids(GRID),
        return_dict=False,
    )[0]
    return result


@PRECISIONS
@VARIANTS
@pytest.mark.parametrize("precompute", [True, False], ids=["precomputed", "each step"])
def test_velocity_equals_that_of_diffusers_to_the_bit(
    checkpoints: Checkpoints, variant: VariantName, precision: Precision, precompute: bool
) -> None:
    checkpoint = checkpoints.get(variant, precision)
    transformer = _make(checkpoint, precompute)
    for step in range(3):
        expected = _diffusers_velocity(checkpoint, 0, step)
        assert torch.equal(velocity(checkpoint, transformer, checkpoint.lora_slots, GRID, [None], step=step), expected)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_images_of_a_batch_equal_those_of_diffusers_to_the_bit(checkpoints: Checkpoints, precision: Precision) -> None:
    checkpoint = checkpoints.get("dev", precision, geometry=WIDE)
    batch = velocity(checkpoint, _make(checkpoint), checkpoint.lora_slots, GRID, [None, None])
    assert torch.equal(batch, torch.cat([_diffusers_velocity(checkpoint, seed, 1) for seed in range(2)]))


@PRECISIONS
@VARIANTS
def test_precomputed_modulation_equals_that_of_each_step(
    checkpoints: Checkpoints, variant: VariantName, precision: Precision
) -> None:
    checkpoint = checkpoints.load(variant, precision)
    slots = checkpoint.lora_slots
    selection = _load_lora(checkpoint, 1, range(1, 5))
    before, in_step = (_make(checkpoint, precompute) for precompute in (True, False))
    for loras in (None, selection):
        conditions = [condition(checkpoint, each, 0, GRID, loras=loras) for each in (before, in_step)]
        assert conditions[0].modulation is not None
        assert conditions[1].modulation is None
        for step in range(3):
            vectors = [
                each.modulation([(conditioning, step)], slots.batch([loras]))
                for each, conditioning in zip((before, in_step), conditions, strict=True)
            ]
            assert torch.equal(*vectors)


def _load_lora(checkpoint: Checkpoint, seed: int, slots: range) -> SlotSelection:
    matrices = {
        f"transformer.{name}": each for name, each in make_lora(checkpoint, seed, len(slots)).transformer.items()
    }
    write_to_slots(checkpoint.lora_slots, slots, matrices)
    return SlotSelection(dict.fromkeys(slots, 0.7), frozenset(matrices))


@pytest.mark.parametrize("precompute", [True, False])
def test_strength_0_has_no_steps(checkpoints: Checkpoints, precompute: bool) -> None:
    checkpoint = checkpoints.get()
    conditioning = condition(checkpoint, _make(checkpoint, precompute), 0, GRID, strength=0.0)
    assert conditioning.timesteps.numel() == conditioning.sigma_deltas.numel() == 0
    assert conditioning.modulation is None


@pytest.mark.parametrize("per_batch", [True, False])
def test_graphs_change_no_bit_while_images_and_loras_join_and_leave(checkpoints: Checkpoints, per_batch: bool) -> None:
    checkpoint = checkpoints.load("dev", "float32")
    checkpoint.lora_slots._product_per_batch = per_batch
    first, second = _load_lora(checkpoint, 1, range(1, 5)), _load_lora(checkpoint, 2, range(5, 25))
    capture = FakeCapture()
    plain, with_graphs = _make(checkpoint), _make(checkpoint, graphs=CudaGraphs(capture))
    batches: list[list[SlotSelection | None]] = [
        [None],
        [first],
        [first, None],
        [None, first],
        [second, None],
        [first, second],
        [None, None],
    ]
    for _ in range(CAPTURE_USES + 1):
        for grid in (GRID, OTHER_GRID):
            for selections in batches:
                actual, expected = (
                    velocity(checkpoint, each, checkpoint.lora_slots, grid, selections) for each in (with_graphs, plain)
                )
                assert torch.equal(actual, expected)
    assert capture.replays > len(capture.captured) > 0


class RecordingBlocks(EagerBlocks):
    """Records for each pass whether it has LoRAs, and the number of images."""

    def __init__(self, checkpoint: Checkpoint, slots: LoraSlots) -> None:
        super().__init__(checkpoint.transformer, slots, native_attention)
        self.passes: list[tuple[int, bool]] = []

    def single(self, block: Any, tokens: Tensor, vectors: Tensor, rotary: Rotary, loras: BatchLoras | None) -> Tensor:
        self.passes.append((len(tokens), loras is not None))
        return super().single(block, tokens, vectors, rotary, loras)


@pytest.mark.parametrize("lora_bytes", [0, 2**20])
def test_warm_up_runs_one_and_several_images_with_loras_only_if_there_are_slots(
    checkpoints: Checkpoints, lora_bytes: int
) -> None:
    checkpoint = checkpoints.load("dev", "bf16")
    slots = LoraSlots({"transformer": checkpoint.transformer}, lora_bytes, product_per_batch=True)
    blocks = RecordingBlocks(checkpoint, slots)
    FluxTransformer(checkpoint.transformer, slots, blocks).warm_up(4, 2)
    assert set(blocks.passes) == {(images, loras) for images in (1, 2) for loras in {False, lora_bytes > 0}}
