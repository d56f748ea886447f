"""Every published format of a LoRA means the same weights; what cannot be applied is named or refused."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch

from serve.lora.convert import PeftConfig, StateDictConverter
from serve.lora.safetensors_header import InvalidLoraFile
from serve.lora.weights import LoraWeights, LowRank
from tests.unit.lora import lora_files
from tests.unit.lora.geometries import TINY, changed
from tests.unit.lora.lora_files import Pair, Tensors

NAMES = lora_files.bfl_names(range(2), range(2), outside=True)
PAIRS = lora_files.tiny_pairs(TINY)
CLIP = lora_files.clip_pairs(TINY)
QUERY = "transformer_blocks.0.attn.to_q"


def read(tensors: Tensors, configs: Mapping[str, PeftConfig] | None = None, **geometry: Any) -> LoraWeights:
    return StateDictConverter(changed(TINY, **geometry), max_rank=16).convert(tensors, configs or {})


def delta(low_rank: LowRank) -> torch.Tensor:
    return low_rank.scale * low_rank.up.float() @ low_rank.down.float()


def assert_same(found: Mapping[str, LowRank], pairs: Mapping[str, Pair], scale: float = 1.0) -> None:
    assert found.keys() == pairs.keys()
    for layer, (down, up) in pairs.items():
        torch.testing.assert_close(delta(found[layer]), scale * up @ down, msg=partial("{}: {}".format, layer))


FORMATS: dict[str, Callable[[], Tensors]] = {
    "diffusers": lambda: lora_files.diffusers(PAIRS),
    "diffusers, old endings": lambda: {
        name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): tensor
        for name, tensor in lora_files.diffusers(PAIRS).items()
    },
    "diffusers names without a prefix": lambda: lora_files.diffusers(PAIRS, ""),
    "peft": lambda: lora_files.diffusers(PAIRS, "base_model.model."),
    "peft, adapter named": lambda: {
        name.replace(".weight", ".ink_2.weight"): tensor
        for name, tensor in lora_files.diffusers(PAIRS, "base_model.model.transformer.").items()
    },
    "ai-toolkit": lambda: lora_files.diffusers(PAIRS, "diffusion_model."),
    "bfl": lambda: lora_files.bfl(PAIRS, NAMES),
    "bfl in comfyui": lambda: lora_files.bfl(PAIRS, NAMES, "diffusion_model."),
    "bfl in an all-in-one file": lambda: lora_files.bfl(PAIRS, NAMES, "model.diffusion_model."),
    "bfl in peft": lambda: lora_files.bfl(PAIRS, NAMES, "base_model.model."),
    "kohya": lambda: lora_files.kohya(PAIRS, NAMES),
    "kohya with alpha": lambda: lora_files.kohya(PAIRS, NAMES, alpha=3),
    "diffusers names in kohya's way": lambda: lora_files.flat(PAIRS, "lora_unet_"),
    "onetrainer": lambda: lora_files.flat(PAIRS, "lora_transformer_", alpha=3),
    "lycoris": lambda: lora_files.flat(PAIRS, "lycoris_", alpha=3),
}


@pytest.mark.parametrize("tensors", [pytest.param(make, id=name) for name, make in FORMATS.items()])
def test_every_format_gives_the_weights_of_the_same_lora(tensors: Callable[[], Tensors]) -> None:
    weights = read(tensors())
    assert_same(weights.transformer, PAIRS)
    assert weights.clip == {}
    assert weights.unapplied == ()


def test_xlabs_gives_the_weights_of_its_layers() -> None:
    weights = read(lora_files.xlabs(PAIRS, range(2), range(2)))
    attention = {
        layer: pair
        for layer, pair in PAIRS.items()
        if ("attn" in layer and "norm" not in layer) or (layer.startswith("single") and layer.endswith("proj_out"))
    }
    assert_same(weights.transformer, attention)
    assert weights.unapplied == ()


@pytest.mark.parametrize(
    "tensors",
    [
        lora_files.diffusers(CLIP, "text_encoder."),
        lora_files.diffusers(CLIP, "text_encoder.text_model."),
        lora_files.diffusers(CLIP, "text_encoders.clip_l.transformer.text_model."),
        lora_files.diffusers(CLIP, "base_model.model.text_model."),
        lora_files.flat(CLIP, "lora_te1_text_model_"),
        lora_files.flat(CLIP, "lora_te_text_model_", alpha=3),
        {
            name.replace("lora_A", "lora_linear_layer.down").replace("lora_B", "lora_linear_layer.up"): tensor
            for name, tensor in lora_files.diffusers(CLIP, "text_encoder.text_model.").items()
        },
    ],
)
def test_the_text_encoders_part_is_read_in_every_format(tensors: Tensors) -> None:
    weights = read(lora_files.kohya(PAIRS, NAMES) | tensors)
    assert_same(weights.clip, CLIP)
    assert_same(weights.transformer, PAIRS)


def test_a_file_of_the_text_encoder_alone_is_a_lora_too() -> None:
    weights = read(lora_files.flat(CLIP, "lora_te1_text_model_"))
    assert_same(weights.clip, CLIP)
    assert weights.transformer == {}


def test_alpha_is_divided_by_the_rank_of_each_layer() -> None:
    tensors = lora_files.kohya(PAIRS, NAMES, alpha=1.5)
    name = "double_blocks.1.img_attn.proj"
    wide = {name: (torch.randn(5, 16), torch.randn(16, 5))}
    tensors |= lora_files.flat(wide, "lora_unet_", alpha=1.5)
    weights = read(tensors)
    assert weights.transformer["transformer_blocks.0.attn.to_k"].scale == 0.5
    assert weights.transformer["norm_out.linear"].scale == 0.5
    assert weights.transformer["transformer_blocks.1.attn.to_out.0"].scale == 0.3
    assert weights.rank == 5


def test_any_few_layers_are_a_lora() -> None:
    few = {layer: PAIRS[layer] for layer in (QUERY, "single_transformer_blocks.1.proj_mlp", "x_embedder")}
    assert_same(read(lora_files.diffusers(few)).transformer, few)


def test_layers_fused_with_zeros_for_each_other_keep_their_own_rank() -> None:
    """As kohya's script writes layers that were trained apart: the ranks of all, each zero for the others."""
    generator = torch.Generator().manual_seed(1)
    apart = {
        f"transformer_blocks.0.{layer}": (
            torch.randn(2, 16, generator=generator),
            torch.randn(16, 2, generator=generator),
        )
        for layer in lora_files.QKV
    }
    down, up = torch.cat([pair[0] for pair in apart.values()]), lora_files.diagonal(pair[1] for pair in apart.values())
    weights = read(lora_files.flat({"double_blocks.0.img_attn.qkv": (down, up)}, "lora_unet_", alpha=3))
    assert_same(weights.transformer, apart, scale=0.5)
    assert weights.rank == 2


def test_a_layer_of_zeros_adds_nothing() -> None:
    weights = read(lora_files.diffusers({QUERY: (torch.ones(2, 16), torch.zeros(16, 2))}))
    assert delta(weights.transformer[QUERY]).count_nonzero() == 0


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        (torch.float32, torch.float32),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float32),
        (torch.float8_e4m3fn, torch.bfloat16),
        (torch.float8_e5m2, torch.bfloat16),
    ],
)
def test_weights_keep_their_type_where_it_can_be_computed_with(stored: torch.dtype, kept: torch.dtype) -> None:
    tensors = {name: tensor.to(stored) for name, tensor in lora_files.diffusers(PAIRS).items()}
    found = read(tensors).transformer[QUERY]
    assert (found.down.dtype, found.up.dtype) == (kept, kept)
    assert torch.equal(found.up.float(), PAIRS[QUERY][1].to(stored).float())


def test_two_types_in_one_layer_become_the_wider_one() -> None:
    down, up = PAIRS[QUERY]
    found = read(lora_files.diffusers({QUERY: (down.bfloat16(), up)})).transformer[QUERY]
    assert (found.down.dtype, found.up.dtype) == (torch.float32, torch.float32)


def test_strengths_kept_apart_scale_what_has_no_alpha() -> None:
    config = PeftConfig.from_dict({"lora_alpha": 6, "alpha_pattern": {"^x_embedder$": 12, "attn.to_k": 3.0}})
    weights = read(lora_files.diffusers(PAIRS) | lora_files.diffusers(CLIP, "text_encoder."), {"transformer": config})
    assert weights.transformer[QUERY].scale == 2
    assert weights.transformer["x_embedder"].scale == 4
    assert weights.transformer["single_transformer_blocks.1.attn.to_k"].scale == 1
    assert weights.clip["encoder.layers.0.mlp.fc1"].scale == 1
    assert read(lora_files.kohya(PAIRS, NAMES, alpha=3), {"transformer": config}).transformer[QUERY].scale == 1


def test_rank_stabilised_strength_is_divided_by_the_root() -> None:
    config = PeftConfig.from_dict({"lora_alpha": 3, "use_rslora": True})
    found = read(lora_files.diffusers(PAIRS), {"transformer": config}).transformer[QUERY]
    assert found.scale == pytest.approx(3**0.5)


def test_what_has_no_use_is_named_with_the_reason() -> None:
    others = {
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight": torch.zeros(1, 4),
        "lora_te1_text_projection.lora_down.weight": torch.zeros(1, 4),
        "transformer.transformer_blocks.0.attn.norm_q.diff": torch.zeros(4),
        f"transformer.{QUERY}.lora_B.bias": torch.zeros(16),
    }
    weights = read(lora_files.diffusers(PAIRS) | others)
    assert_same(weights.transformer, PAIRS)
    assert weights.unapplied == (
        "lora_te1_text_projection.lora_down.weight: this model has no such layer that could be adapted",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight: only the CLIP text encoder is adapted here",
        "transformer.transformer_blocks.0.attn.norm_q.diff: only the low-rank matrices of linear layers are applied",
        f"transformer.{QUERY}.lora_B.bias: only the low-rank matrices of linear layers are applied",
    )


def test_a_layer_under_two_names_counts_once_under_the_models_own() -> None:
    doubled = {layer: (down, 2 * up) for layer, (down, up) in PAIRS.items()}
    weights = read(lora_files.kohya(doubled, NAMES) | lora_files.diffusers(PAIRS))
    assert_same(weights.transformer, PAIRS)
    assert len(weights.unapplied) == len(NAMES)
    assert all(
        re.match(r"lora_unet_\w+: the file has [\w.]+ under another name too", line) for line in weights.unapplied
    )


def test_a_model_without_guidance_takes_the_rest_of_a_lora_for_one_with_it() -> None:
    weights = read(lora_files.kohya(PAIRS, NAMES), guidance_embeds=False)
    assert len(weights.unapplied) == 4
    assert all("guidance_in" in line for line in weights.unapplied)
    assert len(weights.transformer) == len(PAIRS) - 2


@pytest.mark.parametrize(
    ("ending", "why"),
    [
        ("lora_down.weight", "of the matrices that belong together it has only down"),
        ("lora_up.weight", "of the matrices that belong together it has only up"),
        ("hada_w1_a", "of the matrices that belong together it has only hada_w1_a"),
        ("lokr_w1", "its LoKr matrices are not complete"),
    ],
)
def test_a_part_of_a_layer_is_a_fault(ending: str, why: str) -> None:
    with pytest.raises(InvalidLoraFile, match=rf"{why} \(in lora_unet_img_in\)"):
        read({f"lora_unet_img_in.{ending}": torch.ones(2, 2)})


FAULTS: dict[str, tuple[Tensors, str]] = {
    "nothing": ({}, "nothing in it applies to this model; it is empty"),
    "nothing of use": (
        {"model.embed.weight": torch.zeros(2, 2)},
        "nothing in it applies to this model; it has 1 tensors, such as model.embed.weight: only the low-rank",
    ),
    "SDXL": (
        {
            "lora_unet_input_blocks_4_1_proj_in.lora_down.weight": torch.zeros(2, 640),
            "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(2, 1280),
            **lora_files.flat(CLIP, "lora_te1_text_model_"),
        },
        "it is made for Stable Diffusion XL, not for FLUX.1",
    ),
    "SD 1.5": (
        lora_files.flat(
            {"down_blocks.0.attentions.0.proj_in": (torch.zeros(2, 320), torch.zeros(320, 2))}, "lora_unet_"
        ),
        "it is made for Stable Diffusion, not for FLUX.1",
    ),
    "Qwen-Image": (
        lora_files.diffusers(PAIRS)
        | lora_files.diffusers({"transformer_blocks.0.img_mlp.net.2": (torch.zeros(2, 64), torch.zeros(16, 2))}),
        "it is made for Qwen-Image, not for FLUX.1",
    ),
    "deeper": (
        lora_files.diffusers({"transformer_blocks.18.attn.to_q": PAIRS[QUERY]}),
        "made for another model: this one has fewer blocks than transformer.transformer_blocks.18.attn.to_q",
    ),
    "deeper, kohya": (
        lora_files.flat({"single_blocks.37.linear2": (torch.zeros(1, 80), torch.zeros(16, 1))}, "lora_unet_"),
        "made for another model: this one has fewer blocks than lora_unet_single_blocks_37_linear2",
    ),
    "wider": (
        lora_files.diffusers({QUERY: (torch.zeros(2, 3072), torch.zeros(3072, 2))}),
        rf"another model, whose weights are \[3072, 3072\] where this one's are \[16, 16\] \(in transformer.{QUERY}\)",
    ),
    "rank": (
        lora_files.diffusers({QUERY: (torch.ones(17, 16), torch.ones(16, 17))}),
        "its rank is 17, at most 16 is taken",
    ),
    "NaN": (
        lora_files.diffusers({QUERY: (torch.full((2, 16), torch.nan), torch.ones(16, 2))}),
        rf"NaN or infinite \(in transformer.{QUERY}\)",
    ),
    "infinite": (
        lora_files.diffusers({QUERY: (torch.ones(2, 16), torch.full((16, 2), torch.inf))}),
        "NaN or infinite",
    ),
    "alpha": (
        lora_files.diffusers(PAIRS) | {f"transformer.{QUERY}.alpha": torch.tensor([1.0, 2.0])},
        "its alpha is not one number",
    ),
    "alpha of NaN": (
        lora_files.diffusers(PAIRS) | {f"transformer.{QUERY}.alpha": torch.tensor(torch.nan)},
        "NaN or infinite",
    ),
    "alpha alone": ({f"transformer.{QUERY}.alpha": torch.tensor(1.0)}, "it has only alpha"),
    "ranks that differ": (
        lora_files.diffusers({QUERY: (torch.ones(2, 16), torch.ones(16, 3))}),
        "do not belong together: ranks 2 and 3",
    ),
    "a vector": (lora_files.diffusers({QUERY: (torch.ones(16), torch.ones(16, 3))}), "where a matrix should be"),
    "whole numbers": (
        lora_files.diffusers({QUERY: (torch.ones(2, 16, dtype=torch.int8), torch.ones(16, 2))}),
        "quantised LoRAs are not taken",
    ),
    "two endings": (
        lora_files.diffusers(PAIRS) | {f"transformer.{QUERY}.lora_down.weight": torch.ones(2, 16)},
        "twice",
    ),
    "DoRA": (lora_files.diffusers(PAIRS) | {f"transformer.{QUERY}.dora_scale": torch.ones(16, 1)}, "made with DoRA"),
    "DoRA of peft": (
        lora_files.diffusers(PAIRS) | {f"transformer.{QUERY}.lora_magnitude_vector": torch.ones(16)},
        "made with DoRA",
    ),
    "GLoRA": (
        {f"lora_unet_img_in.{name}.weight": torch.ones(2, 2) for name in ("a1", "a2", "b1", "b2")},
        "made with GLoRA",
    ),
    "OFT": ({"lora_unet_img_in.oft_blocks": torch.ones(2, 2, 2)}, "made with OFT"),
}


@pytest.mark.parametrize(("tensors", "why"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_applied_is_refused_with_the_reason(tensors: Tensors, why: str) -> None:
    with pytest.raises(InvalidLoraFile, match=why):
        read(tensors)
