"""Every published LoRA format is converted to the same weights. Unusable tensors are reported or rejected."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from serve.lora.convert_state_dict import StateDictConverter
from serve.lora.peft_config import PeftConfig
from serve.lora.safetensors_header import InvalidLoraFile
from serve.lora.weights import LoraWeights
from tests.unit.lora import lora_files
from tests.unit.lora.geometries import TINY, with_fields
from tests.unit.lora.lora_files import Tensors, assert_equal_weights, weight_delta

NAMES = lora_files.bfl_names(range(2), range(2), outer_layers=True)
PAIRS = lora_files.transformer_pairs(TINY)
CLIP_PAIRS = lora_files.clip_pairs(TINY)
QUERY = "transformer_blocks.0.attn.to_q"


def convert(tensors: Tensors, configs: Mapping[str, PeftConfig] | None = None, **geometry: Any) -> LoraWeights:
    return StateDictConverter(with_fields(TINY, **geometry), max_rank=16).convert(tensors, configs or {})


FORMATS = lora_files.every_format(PAIRS, NAMES)


@pytest.mark.parametrize("tensors", FORMATS.values(), ids=FORMATS)
def test_every_format_converts_to_the_same_weights(tensors: Tensors) -> None:
    weights = convert(tensors)
    assert_equal_weights(weights.transformer, PAIRS)
    assert weights.clip == {}
    assert weights.unapplied == ()


def test_xlabs_format_converts_to_the_weights_of_its_layers() -> None:
    weights = convert(lora_files.xlabs(PAIRS, range(2), range(2)))
    attention = {
        layer: pair
        for layer, pair in PAIRS.items()
        if ("attn" in layer and "norm" not in layer) or (layer.startswith("single") and layer.endswith("proj_out"))
    }
    assert_equal_weights(weights.transformer, attention)
    assert weights.unapplied == ()


@pytest.mark.parametrize(
    "tensors",
    [
        lora_files.diffusers(CLIP_PAIRS, "text_encoder."),
        lora_files.diffusers(CLIP_PAIRS, "text_encoder.text_model."),
        lora_files.diffusers(CLIP_PAIRS, "text_encoders.clip_l.transformer.text_model."),
        lora_files.diffusers(CLIP_PAIRS, "base_model.model.text_model."),
        lora_files.with_underscores(CLIP_PAIRS, "lora_te1_text_model_"),
        lora_files.with_underscores(CLIP_PAIRS, "lora_te_text_model_", alpha=3),
        {
            name.replace("lora_A", "lora_linear_layer.down").replace("lora_B", "lora_linear_layer.up"): tensor
            for name, tensor in lora_files.diffusers(CLIP_PAIRS, "text_encoder.text_model.").items()
        },
    ],
)
def test_clip_layers_are_converted_from_every_format(tensors: Tensors) -> None:
    weights = convert(lora_files.kohya(PAIRS, NAMES) | tensors)
    assert_equal_weights(weights.clip, CLIP_PAIRS)
    assert_equal_weights(weights.transformer, PAIRS)


def test_file_with_clip_layers_only_is_accepted() -> None:
    weights = convert(lora_files.with_underscores(CLIP_PAIRS, "lora_te1_text_model_"))
    assert_equal_weights(weights.clip, CLIP_PAIRS)
    assert weights.transformer == {}


def test_alpha_is_divided_by_the_rank_of_each_layer() -> None:
    tensors = lora_files.kohya(PAIRS, NAMES, alpha=1.5)
    rank_5 = {"double_blocks.1.img_attn.proj": (torch.randn(5, 16), torch.randn(16, 5))}
    tensors |= lora_files.with_underscores(rank_5, "lora_unet_", alpha=1.5)
    weights = convert(tensors)
    assert weights.transformer["transformer_blocks.0.attn.to_k"].scale == 0.5
    assert weights.transformer["norm_out.linear"].scale == 0.5
    assert weights.transformer["transformer_blocks.1.attn.to_out.0"].scale == 0.3
    assert weights.slots == 5


def test_any_subset_of_layers_is_accepted() -> None:
    subset = {layer: PAIRS[layer] for layer in (QUERY, "single_transformer_blocks.1.proj_mlp", "x_embedder")}
    assert_equal_weights(convert(lora_files.diffusers(subset)).transformer, subset)


def test_separately_trained_layers_keep_their_rank_when_fused() -> None:
    """kohya's sd-scripts concatenates the down matrices and puts the up matrices on the diagonal."""
    generator = torch.Generator().manual_seed(1)
    separate = {
        f"transformer_blocks.0.{layer}": (
            torch.randn(2, 16, generator=generator),
            torch.randn(16, 2, generator=generator),
        )
        for layer in lora_files.QKV
    }
    down = torch.cat([pair[0] for pair in separate.values()])
    up = lora_files.block_diagonal(pair[1] for pair in separate.values())
    fused = {"double_blocks.0.img_attn.qkv": (down, up)}
    weights = convert(lora_files.with_underscores(fused, "lora_unet_", alpha=3))
    assert_equal_weights(weights.transformer, separate, scale=0.5)
    assert weights.slots == 2


def test_layer_of_zeros_adds_nothing() -> None:
    weights = convert(lora_files.diffusers({QUERY: (torch.ones(2, 16), torch.zeros(16, 2))}))
    assert weight_delta(weights.transformer[QUERY]).count_nonzero() == 0


@pytest.mark.parametrize(
    ("file_dtype", "dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float32),
        (torch.float8_e4m3fn, torch.bfloat16),
        (torch.float8_e5m2, torch.bfloat16),
    ],
)
def test_dtype_is_kept_or_converted_to_a_supported_one(file_dtype: torch.dtype, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(file_dtype) for name, tensor in lora_files.diffusers(PAIRS).items()}
    query = convert(tensors).transformer[QUERY]
    assert (query.down.dtype, query.up.dtype) == (dtype, dtype)
    assert torch.equal(query.up.float(), PAIRS[QUERY][1].to(file_dtype).float())


def test_mixed_dtypes_in_a_layer_are_promoted() -> None:
    down, up = PAIRS[QUERY]
    query = convert(lora_files.diffusers({QUERY: (down.bfloat16(), up)})).transformer[QUERY]
    assert (query.down.dtype, query.up.dtype) == (torch.float32, torch.float32)


def test_peft_config_scales_layers_without_alpha() -> None:
    config = PeftConfig.from_dict({"lora_alpha": 6, "alpha_pattern": {"^x_embedder$": 12, "attn.to_k": 3.0}})
    configs = {"transformer": config}
    weights = convert(lora_files.diffusers(PAIRS) | lora_files.diffusers(CLIP_PAIRS, "text_encoder."), configs)
    assert weights.transformer[QUERY].scale == 2
    assert weights.transformer["x_embedder"].scale == 4
    assert weights.transformer["single_transformer_blocks.1.attn.to_k"].scale == 1
    assert weights.clip["encoder.layers.0.mlp.fc1"].scale == 1
    assert convert(lora_files.kohya(PAIRS, NAMES, alpha=3), configs).transformer[QUERY].scale == 1


def test_rank_stabilized_alpha_is_divided_by_the_root_of_the_rank() -> None:
    config = PeftConfig.from_dict({"lora_alpha": 3, "use_rslora": True})
    query = convert(lora_files.diffusers(PAIRS), {"transformer": config}).transformer[QUERY]
    assert query.scale == pytest.approx(3**0.5)


def test_unapplied_tensors_are_reported_with_the_reason() -> None:
    other_layer = "lora_te1_text_projection.lora_down.weight"
    t5 = "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight"
    embedding = "text_encoder.text_model.embeddings.token_embedding.weight"
    others = {t5: (1, 4), other_layer: (1, 4), embedding: (4, 2)}
    tensors = {name: torch.zeros(shape) for name, shape in others.items()}
    weights = convert(lora_files.diffusers(PAIRS) | tensors)
    assert_equal_weights(weights.transformer, PAIRS)
    names, reasons = zip(*(line.split(": ") for line in weights.unapplied), strict=True)
    assert names == (other_layer, t5, embedding)
    words = ("no such linear layer", "only the CLIP text encoder", "low-rank matrices")
    assert [word for word, reason in zip(words, reasons, strict=True) if word not in reason] == []


def test_pattern_is_matched_with_the_name_in_the_file() -> None:
    config = PeftConfig.from_dict({"lora_alpha": 3, "alpha_pattern": {r"^double_blocks\.\d\.img_attn\.qkv": 12}})
    tensors = lora_files.bfl(PAIRS, NAMES, "base_model.model.")
    weights = convert(tensors, {"transformer": config})
    assert weights.transformer[QUERY].scale == 4
    assert weights.transformer["transformer_blocks.0.attn.to_out.0"].scale == 1


def test_diffusers_layer_name_takes_precedence_over_another_name() -> None:
    doubled = {layer: (down, 2 * up) for layer, (down, up) in PAIRS.items()}
    weights = convert(lora_files.kohya(doubled, NAMES) | lora_files.diffusers(PAIRS))
    assert_equal_weights(weights.transformer, PAIRS)
    assert len(weights.unapplied) == len(NAMES)
    assert all(re.match(r"lora_unet_\w+: .*another name", line) for line in weights.unapplied)


def test_model_without_guidance_accepts_the_other_layers_of_a_guided_lora() -> None:
    weights = convert(lora_files.kohya(PAIRS, NAMES), guidance_embeds=False)
    assert len(weights.unapplied) == 4
    assert all("guidance_in" in line for line in weights.unapplied)
    assert len(weights.transformer) == len(PAIRS) - 2


@pytest.mark.parametrize(
    ("suffix", "word"),
    [
        ("lora_down.weight", "only down"),
        ("lora_up.weight", "only up"),
        ("hada_w1_a", "only hada_w1_a"),
        ("lokr_w1", "LoKr"),
    ],
)
def test_incomplete_layer_is_rejected(suffix: str, word: str) -> None:
    with pytest.raises(InvalidLoraFile, match=r"incomplete.*\(in lora_unet_img_in\)") as caught:
        convert({f"lora_unet_img_in.{suffix}": torch.ones(2, 2)})
    assert word in str(caught.value)


INVALID_FILES: dict[str, tuple[Tensors, str]] = {
    "empty": ({}, "empty"),
    "no LoRA": (
        {"model.embed.weight": torch.zeros(2, 2)},
        r"1 tensors.*model\.embed\.weight",
    ),
    "SDXL": (
        {
            "lora_unet_input_blocks_4_1_proj_in.lora_down.weight": torch.zeros(2, 640),
            "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(2, 1280),
            **lora_files.with_underscores(CLIP_PAIRS, "lora_te1_text_model_"),
        },
        "Stable Diffusion XL",
    ),
    "SD 1.5": (
        lora_files.with_underscores(
            {"down_blocks.0.attentions.0.proj_in": (torch.zeros(2, 320), torch.zeros(320, 2))}, "lora_unet_"
        ),
        r"Stable Diffusion\b(?! XL)",
    ),
    "Qwen-Image": (
        lora_files.diffusers(PAIRS)
        | lora_files.diffusers({"transformer_blocks.0.img_mlp.net.2": (torch.zeros(2, 64), torch.zeros(16, 2))}),
        "Qwen-Image",
    ),
    "more blocks": (
        lora_files.diffusers({"transformer_blocks.18.attn.to_q": PAIRS[QUERY]}),
        r"more blocks.*transformer\.transformer_blocks\.18\.attn\.to_q",
    ),
    "more blocks, kohya": (
        lora_files.with_underscores(
            {"single_blocks.37.linear2": (torch.zeros(1, 80), torch.zeros(16, 1))}, "lora_unet_"
        ),
        "more blocks.*lora_unet_single_blocks_37_linear2",
    ),
    "wider": (
        lora_files.diffusers({QUERY: (torch.zeros(2, 3072), torch.zeros(3072, 2))}),
        rf"another model.*\[3072, 3072\].*\[16, 16\].*\(in transformer\.{QUERY}\)",
    ),
    "rank": (
        lora_files.diffusers({QUERY: (torch.ones(17, 16), torch.ones(16, 17))}),
        "17.* 16",
    ),
    "NaN": (
        lora_files.diffusers({QUERY: (torch.full((2, 16), torch.nan), torch.ones(16, 2))}),
        rf"NaN or infinite.*\(in transformer\.{QUERY}\)",
    ),
    "infinite": (
        lora_files.diffusers({QUERY: (torch.ones(2, 16), torch.full((16, 2), torch.inf))}),
        "NaN or infinite",
    ),
    "two alphas": (
        lora_files.diffusers(PAIRS) | {f"transformer.{QUERY}.alpha": torch.tensor([1.0, 2.0])},
        "single number",
    ),
    "alpha is NaN": (
        lora_files.diffusers(PAIRS) | {f"transformer.{QUERY}.alpha": torch.tensor(torch.nan)},
        "NaN or infinite",
    ),
    "alpha only": ({f"transformer.{QUERY}.alpha": torch.tensor(1.0)}, "only alpha"),
    "different ranks": (
        lora_files.diffusers({QUERY: (torch.ones(2, 16), torch.ones(16, 3))}),
        "ranks 2 and 3",
    ),
    "vector": (lora_files.diffusers({QUERY: (torch.ones(16), torch.ones(16, 3))}), r"shape \[16\]"),
    "integers": (
        lora_files.diffusers({QUERY: (torch.ones(2, 16, dtype=torch.int8), torch.ones(16, 2))}),
        "quantized",
    ),
    "two suffixes": (
        lora_files.diffusers(PAIRS) | {f"transformer.{QUERY}.lora_down.weight": torch.ones(2, 16)},
        "two down tensors",
    ),
    "bias": (lora_files.diffusers(PAIRS) | {f"transformer.{QUERY}.lora_B.bias": torch.ones(15)}, r"bias.*\[15\].* 16"),
    "NaN bias": (
        lora_files.diffusers(PAIRS) | {f"transformer.{QUERY}.lora_B.bias": torch.full((16,), torch.nan)},
        "NaN or infinite",
    ),
}


@pytest.mark.parametrize(("tensors", "pattern"), INVALID_FILES.values(), ids=INVALID_FILES)
def test_invalid_file_is_rejected_with_the_reason(tensors: Tensors, pattern: str) -> None:
    with pytest.raises(InvalidLoraFile, match=pattern):
        convert(tensors)
