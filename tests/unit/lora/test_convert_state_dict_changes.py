"""Biases, changes of whole parameters and empty layers are applied, reported or refused."""

from typing import Any

import pytest
import torch

from serve.lora.convert_state_dict import StateDictConverter
from serve.lora.safetensors_header import InvalidLoraFile
from serve.lora.weights import LoraWeights
from tests.unit.lora import lora_files
from tests.unit.lora.geometries import TINY, with_fields
from tests.unit.lora.lora_files import Tensors, assert_equal_weights, weight_delta

NAMES = lora_files.bfl_names(range(2), range(2), outer_layers=True)
PAIRS = lora_files.transformer_pairs(TINY)
QUERY = "transformer_blocks.0.attn.to_q"


def convert(tensors: Tensors, **geometry: Any) -> LoraWeights:
    return StateDictConverter(with_fields(TINY, **geometry), max_rank=16).convert(tensors, {})


BIAS = torch.randn(16, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    ("suffix", "factor"),
    [("lora_B.bias", 0.5), ("lora_B.style.bias", 0.5), ("lora_up.bias", 0.5), ("diff_b", 1.0)],
)
def test_bias_of_the_lora_is_scaled_and_change_of_the_bias_is_not(suffix: str, factor: float) -> None:
    tensors = lora_files.diffusers({QUERY: PAIRS[QUERY]}) | {
        f"transformer.{QUERY}.alpha": torch.tensor(1.5),
        f"transformer.{QUERY}.{suffix}": BIAS,
    }
    weights = convert(tensors)
    query = weights.transformer[QUERY]
    assert query.bias is not None
    torch.testing.assert_close(query.bias, factor * BIAS)
    assert_equal_weights(weights.transformer, {QUERY: PAIRS[QUERY]}, scale=0.5)
    assert (weights.slots, weights.unapplied) == (4, ())


def test_bias_without_matrices_is_applied() -> None:
    query = convert({f"diffusion_model.{QUERY}.diff_b": BIAS.half()}).transformer[QUERY]
    assert (query.rank, query.slots) == (0, 1)
    assert query.bias is not None
    assert torch.equal(query.bias, BIAS.half().float())


def test_bias_of_a_fused_layer_is_split_like_its_outputs() -> None:
    tensors = lora_files.bfl(PAIRS, NAMES, "diffusion_model.")
    fused = torch.arange(48.0)
    tensors["diffusion_model.double_blocks.0.img_attn.qkv.diff_b"] = fused
    tensors["diffusion_model.final_layer.adaLN_modulation.1.diff_b"] = torch.arange(32.0)
    layers = convert(tensors).transformer
    biases = [layers[f"transformer_blocks.0.{name}"].bias for name in lora_files.QKV]
    assert torch.equal(torch.cat([bias for bias in biases if bias is not None]), fused)
    norm_bias = layers["norm_out.linear"].bias
    assert norm_bias is not None
    assert norm_bias.tolist() == [*range(16, 32), *range(16)]


def test_change_of_a_small_weight_is_applied_unscaled() -> None:
    diff = torch.randn(16, 8)
    weights = convert({"lora_unet_img_in.diff": diff, "lora_unet_img_in.alpha": torch.tensor(5.0)})
    torch.testing.assert_close(weight_delta(weights.transformer["x_embedder"]), diff)


DELTAS = [
    ("diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff", 4),
    ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.layer_norm1.diff", 10),
    ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.layer_norm1.diff_b", 10),
    ("lora_te_text_model_encoder_layers_0_layer_norm1.w_norm", 10),
    ("lora_te_text_model_encoder_layers_0_layer_norm1.b_norm", 10),
    (f"transformer.{QUERY}.lora_A.bias", 3),
    (f"transformer.{QUERY}.lora_A.default.bias", 3),
]


@pytest.mark.parametrize(("name", "size"), DELTAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_change_that_cannot_be_applied_is_refused_by_name_unless_it_is_zero(
    name: str, size: int, dtype: torch.dtype
) -> None:
    tensors = lora_files.diffusers(PAIRS)
    weights = convert(tensors | {name: torch.zeros(size).to(dtype)})
    assert_equal_weights(weights.transformer, PAIRS)
    assert weights.unapplied == ()
    with pytest.raises(InvalidLoraFile, match="cannot be applied") as caught:
        convert(tensors | {name: torch.ones(size).to(dtype)})
    assert name in str(caught.value)


def test_change_of_a_large_weight_is_refused_by_name_unless_it_is_zero() -> None:
    name = "diffusion_model.single_blocks.1.linear2.diff"
    tensors = lora_files.diffusers({QUERY: PAIRS[QUERY]})
    assert_equal_weights(
        StateDictConverter(TINY, 8).convert(tensors | {name: torch.zeros(16, 80)}, {}).transformer,
        {QUERY: PAIRS[QUERY]},
    )
    with pytest.raises(InvalidLoraFile, match=r"rank 16\b.* 8 .*single_blocks\.1\.linear2"):
        StateDictConverter(TINY, 8).convert(tensors | {name: torch.ones(16, 80)}, {})


def test_change_of_a_layer_that_only_guided_models_have_is_reported() -> None:
    tensors = lora_files.diffusers({QUERY: PAIRS[QUERY]}) | {"lora_unet_guidance_in_in_layer.diff_b": torch.ones(16)}
    assert len(convert(tensors, guidance_embeds=False).unapplied) == 1
    assert convert(tensors).unapplied == ()


@pytest.mark.parametrize(
    "empty",
    [
        lora_files.diffusers({QUERY: (torch.zeros(0, 16), torch.zeros(16, 0))}),
        {f"transformer.{QUERY}.lokr_w1": torch.zeros(0, 4), f"transformer.{QUERY}.lokr_w2": torch.zeros(4, 0)},
        {f"transformer.{QUERY}.diff_b": torch.zeros(16)},
    ],
    ids=["LoRA", "LoKr", "zero bias"],
)
def test_empty_layer_is_skipped_and_reported_and_a_file_of_them_is_refused(empty: Tensors) -> None:
    others = {layer: pair for layer, pair in PAIRS.items() if layer != QUERY}
    weights = convert(lora_files.diffusers(others) | empty)
    assert_equal_weights(weights.transformer, others)
    (reported,) = weights.unapplied
    assert QUERY in reported
    assert "rank is 0" in reported
    with pytest.raises(InvalidLoraFile, match="rank is 0"):
        convert(empty)
