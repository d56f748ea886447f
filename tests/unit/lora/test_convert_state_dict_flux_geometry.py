"""Every format is converted at the geometry of FLUX.1, for the first and last blocks."""

from collections.abc import Callable
from functools import cache

import pytest
import torch

from serve.lora.convert_state_dict import StateDictConverter
from serve.lora.safetensors_header import InvalidLoraFile
from serve.lora.weights import LoraWeights, pack, unpack
from tests.unit.lora import lora_files
from tests.unit.lora.geometries import FLUX
from tests.unit.lora.lora_files import Tensors, layer_delta

NAMES = lora_files.bfl_names((0, 18), (37,), outer_layers=True)
PAIRS = lora_files.random_pairs(NAMES, FLUX.transformer_layers(), rank=2, dtype=torch.bfloat16)
FORMATS = lora_files.every_format(PAIRS, NAMES)
CONVERTER = StateDictConverter(FLUX, max_rank=256)
QUERY, MODULATION = "transformer_blocks.18.attn.to_q", "single_transformer_blocks.37.norm.linear"


def convert(tensors: Tensors) -> LoraWeights:
    """Converts, and packs the weights as a service does."""
    return unpack(pack(CONVERTER.convert(tensors, {})))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).half()


@pytest.mark.parametrize("tensors", FORMATS.values(), ids=FORMATS)
def test_every_format_converts_to_the_same_weights(tensors: Tensors) -> None:
    weights = convert(tensors)
    assert weights.transformer.keys() == PAIRS.keys()
    for layer, (down, up) in PAIRS.items():
        low_rank = weights.transformer[layer]
        assert torch.equal(low_rank.down, down)
        assert torch.equal(low_rank.up, up)
        assert low_rank.scale == 1
    assert (weights.slots, weights.unapplied) == (2, ())


def test_xlabs_format_converts_to_the_weights_of_its_layers() -> None:
    weights = convert(lora_files.xlabs(PAIRS, (0, 18), (37,)))
    assert len(weights.transformer) == 2 * 8 + 4
    assert all(torch.equal(low_rank.up, PAIRS[layer][1]) for layer, low_rank in weights.transformer.items())


def test_clip_layers_are_converted() -> None:
    pairs = lora_files.clip_pairs(FLUX, rank=1)
    weights = convert(lora_files.with_underscores(pairs, "lora_te1_text_model_", alpha=1))
    assert all(torch.equal(weights.clip[layer].up, up) for layer, (_, up) in pairs.items())


def test_loha_equals_the_elementwise_product_of_two_products() -> None:
    w1_a, w1_b, w2_a, w2_b = random(3072, 4), random(4, 3072), random(3072, 3), random(3, 3072)
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    tensors = {
        f"lycoris_{QUERY.replace('.', '_')}.{name}": tensor
        for name, tensor in zip(names, (w1_a, w1_b, w2_a, w2_b), strict=True)
    }
    weights = convert(tensors)
    expected = (w1_a.float() @ w1_b.float()) * (w2_a.float() @ w2_b.float())
    assert (layer_delta(weights, QUERY) - expected).abs().max() <= 2e-3 * expected.abs().max()
    assert weights.slots == 12


def full(factor: int, outputs: int, inputs: int) -> Tensors:
    """Whole matrices, as SimpleTuner writes."""
    return {"lokr_w1": random(factor, factor), "lokr_w2": random(outputs // factor, inputs // factor)}


def decomposed(factor: int, rank: int, outputs: int, inputs: int) -> Tensors:
    w2_a, w2_b = random(outputs // factor, rank), random(rank, inputs // factor)
    return {"lokr_w1": random(factor, factor), "lokr_w2_a": w2_a, "lokr_w2_b": w2_b}


@cache
def kron(name: str) -> torch.Tensor:
    tensors = LOKR[name][1]
    w2 = tensors["lokr_w2"] if "lokr_w2" in tensors else tensors["lokr_w2_a"].double() @ tensors["lokr_w2_b"].double()
    return torch.kron(tensors["lokr_w1"].double(), w2.double())


QKV = [f"transformer_blocks.18.{name}" for name in lora_files.QKV]
LOKR: dict[str, tuple[str, Tensors, list[str], int]] = {
    "whole matrices": (f"transformer.{QUERY}", full(16, 3072, 3072), [QUERY], 7),
    "whole matrices, default factor": (f"transformer.{QUERY}", full(48, 3072, 3072), [QUERY], 2),
    "whole matrices, small factor": (f"transformer.{QUERY}", full(4, 3072, 3072), [QUERY], 97),
    "second matrix of rank 32": (f"transformer.{QUERY}", decomposed(16, 32, 3072, 3072), [QUERY], 7),
    "second matrix of rank 1": (f"transformer.{QUERY}", decomposed(16, 1, 3072, 3072), [QUERY], 16),
    "fused": ("lora_unet_double_blocks_18_img_attn_qkv", full(16, 9216, 3072), QKV, 19),
    "modulation": (f"transformer.{MODULATION}", full(16, 9216, 3072), [MODULATION], 10),
}
"""Name of the layer in the file, tensors, layers of the model, slots."""


@pytest.mark.parametrize("name", LOKR)
def test_lokr_equals_the_kronecker_product(name: str) -> None:
    file_layer, tensors, layers, slots = LOKR[name]
    weights = convert({f"{file_layer}.{suffix}": tensor for suffix, tensor in tensors.items()})
    assert weights.slots == slots
    vectors = torch.randn(3072, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = torch.cat([layer_delta(weights, layer).double() @ vectors for layer in layers])
    expected = kron(name) @ vectors
    assert (found - expected).abs().max() <= 2e-3 * expected.abs().max()


def test_lokr_of_swapped_halves_equals_the_kronecker_product() -> None:
    tensors = full(16, 6144, 3072)
    layer = "lora_unet_final_layer_adaLN_modulation_1"
    weights = convert({f"{layer}.{suffix}": tensor for suffix, tensor in tensors.items()})
    expected = torch.kron(tensors["lokr_w1"].float(), tensors["lokr_w2"].float()).chunk(2)[::-1]
    torch.testing.assert_close(layer_delta(weights, "norm_out.linear"), torch.cat(expected))


@pytest.mark.parametrize("make", [lambda: full(2, 3072, 3072), lambda: full(1, 3072, 3072)])
def test_lokr_that_is_too_large_is_refused_with_its_size(make: Callable[[], Tensors]) -> None:
    with pytest.raises(InvalidLoraFile, match=r"LoKr.*rank (385|1537).* 256 .*factor"):
        convert({f"transformer.{QUERY}.{suffix}": tensor for suffix, tensor in make().items()})


def test_bias_of_a_fused_layer_is_split() -> None:
    bias = random(9216)
    weights = convert({"diffusion_model.double_blocks.18.img_attn.qkv.diff_b": bias})
    biases = [low_rank.bias for low_rank in weights.transformer.values() if low_rank.bias is not None]
    assert torch.equal(torch.cat(biases), bias.float())
    assert weights.slots == 1


def test_change_of_the_smallest_weights_is_applied() -> None:
    diffs = {"img_in": random(3072, 64), "final_layer.linear": random(64, 3072)}
    weights = convert({f"diffusion_model.{name}.diff": diff for name, diff in diffs.items()})
    assert torch.equal(layer_delta(weights, "x_embedder"), diffs["img_in"].float())
    assert torch.equal(layer_delta(weights, "proj_out"), diffs["final_layer.linear"].float())
    assert weights.slots == 64
