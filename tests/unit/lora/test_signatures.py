"""Files for other base models and of other methods are refused by name."""

import re
from collections.abc import Callable

import pytest
import torch

from serve.lora.convert_state_dict import StateDictConverter
from serve.lora.safetensors_header import InvalidLoraFile
from serve.lora.signatures import base_model_of_shape, detect_base_model, detect_method
from tests.unit.lora import lora_files
from tests.unit.lora.geometries import FLUX, TINY

FLUX_NAMES = [
    *lora_files.bfl_names(range(19), range(38), outer_layers=True),
    *FLUX.transformer_layers(),
    *(f"text_encoder.text_model.{layer}" for layer in FLUX.clip_layers()),
    "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
    "double_blocks.0.processor.qkv_lora1",
    "double_blocks.0.img_attn.norm.query_norm.scale",
]


@pytest.mark.parametrize(
    "spell", [str, lambda name: "lora_unet_" + name.replace(".", "_")], ids=["dots", "underscores"]
)
def test_flux_is_not_detected_as_another_base_model(spell: Callable[[str], str]) -> None:
    names = [spell(name) for name in FLUX_NAMES]
    assert detect_base_model(names) is None
    assert not any(map(detect_method, names))


OTHER_MODELS = [
    ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "Stable Diffusion 1.5 or 2"),
    ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight", "Stable Diffusion 1.5 or 2"),
    ("unet.up_blocks.1.attentions.0.to_q.lora_A.weight", "Stable Diffusion 1.5 or 2"),
    ("lora_unet_middle_block_1_proj_in.alpha", "Stable Diffusion XL"),
    ("unet.down_blocks.2.attentions.0.transformer_blocks.9.attn1.to_q.lora_A.weight", "Stable Diffusion XL"),
    ("lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha", "Stable Diffusion XL"),
    ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "Stable Diffusion XL"),
    ("lora_unet_joint_blocks_0_x_block_attn_qkv.alpha", "Stable Diffusion 3"),
    ("transformer.transformer_blocks.0.attn2.to_q.lora_A.weight", "Stable Diffusion 3.5"),
    ("diffusion_model.double_stream_modulation_img.lin.lora_A.weight", "FLUX.2"),
    ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight", "FLUX.2"),
    ("transformer.transformer_blocks.0.ff_context.linear_in.lora_A.weight", "FLUX.2"),
    ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "Wan"),
    ("transformer.blocks.0.attn1.to_q.lora_A.weight", "Wan"),
    ("lora_unet_blocks_0_cross_attn_k.alpha", "Wan"),
    ("diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight", "Hunyuan Video"),
    ("lora_unet_double_blocks_0_img_mlp_fc1.lora_down.weight", "Hunyuan Video"),
    ("lora_unet_double_blocks_0_img_attn_q.lora_down.weight", "Hunyuan Video"),
    ("transformer_blocks.0.img_mlp.net.0.proj.lora_A.weight", "Qwen-Image"),
    ("lora_unet_transformer_blocks_59_attn_to_q.lora_down.weight", "Qwen-Image"),
    ("transformer_blocks.0.txt_mod.1.lora_A.weight", "Qwen-Image"),
    ("diffusion_model.double_stream_blocks.0.block.attn1.to_q.lora_A.weight", "HiDream"),
    ("transformer.layers.0.self_attention.to_q.lora_A.weight", "Ernie-Image"),
    ("lora_unet_layers_0_mlp_gate_proj.lora_down.weight", "Ernie-Image"),
    ("diffusion_model.layers.0.attention.to_q.lora_A.weight", "Z-Image"),
    ("transformer.noise_refiner.0.attention.to_k.lora_A.weight", "Z-Image"),
    ("distilled_guidance_layer.layers.0.in_layer.lora_A.weight", "Chroma"),
]
OTHER_METHODS = [
    ("lora_unet_img_in.dora_scale", "DoRA"),
    ("transformer.x_embedder.lora_magnitude_vector", "DoRA"),
    ("base_model.model.x_embedder.lora_magnitude_vector.default.weight", "DoRA"),
    ("oft_unet_double_blocks_0_img_attn_qkv.oft_blocks.0", "OFT"),
    ("oft_unet_double_blocks_0_img_attn_qkv.alpha", "OFT"),
    ("lora_unet_img_in.oft_diag", "OFT"),
    ("base_model.model.x_embedder.oft_R.default.weight", "OFT"),
    ("base_model.model.x_embedder.oft_r", "OFT"),
    ("base_model.model.x_embedder.boft_R", "BOFT"),
    ("lora_unet_img_in.a1.weight", "GLoRA"),
    ("lora_unet_img_in.bm2.weight", "GLoRA"),
    ("lora_unet_img_in.on_input", "IA3"),
    ("base_model.model.x_embedder.ia3_l", "IA3"),
    ("lora_unet_img_in.hada_t1", "LoHa for convolutions"),
    ("lora_unet_img_in.lokr_t2", "LoKr for convolutions"),
    ("lora_unet_img_in.lora_mid.weight", "LoCon"),
    ("base_model.model.x_embedder.vera_lambda_b", "VeRA"),
]
WHOLE_WEIGHTS = [
    "transformer.x_embedder.weight",
    "model.diffusion_model.double_blocks.0.img_attn.qkv.weight",
    "base_model.model.proj_out.modules_to_save.weight",
    "base_model.model.x_embedder.bias",
    "diffusion_model.img_in.set_weight",
]


@pytest.mark.parametrize(("name", "model"), OTHER_MODELS)
def test_other_base_model_is_detected(name: str, model: str) -> None:
    assert (detect_base_model([*FLUX_NAMES, name]) or "").startswith(model)
    with pytest.raises(InvalidLoraFile, match=re.escape(model)):
        convert(name)


@pytest.mark.parametrize(("name", "method"), OTHER_METHODS)
def test_other_method_is_refused_by_name(name: str, method: str) -> None:
    with pytest.raises(InvalidLoraFile, match=rf"uses {method}\b") as caught:
        convert(name)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", WHOLE_WEIGHTS)
def test_whole_weights_are_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidLoraFile, match="fine-tune") as caught:
        convert(name)
    assert name in str(caught.value)


def convert(name: str) -> None:
    """Converts a small file of one LoRA for FLUX.1 and a tensor with this name."""
    tensors = lora_files.diffusers({"proj_out": (torch.ones(1, 16), torch.ones(8, 1))})
    StateDictConverter(TINY, max_rank=16).convert(tensors | {name: torch.ones(2, 2)}, {})


@pytest.mark.parametrize(
    ("layer", "shape", "model"),
    [
        ("transformer_blocks.0.attn.to_q", (1536, 1536), "Stable Diffusion 3 or 3.5 Medium"),
        ("transformer_blocks.0.norm1.linear", (14592, 2432), "Stable Diffusion 3.5 Large"),
        ("single_transformer_blocks.0.attn.to_q", (3072, 3072), "FLUX.1"),
        ("transformer_blocks.0.attn.to_q", (6144, 6144), "FLUX.2 dev"),
        ("transformer_blocks.0.ff.net.0.proj", (18432, 3072), "FLUX.2"),
        ("blocks.linear1", (27648, 3072), "FLUX.2"),
        ("transformer_blocks.0.ff.net.2", (1536, 6144), None),
        ("context_embedder", (192, 4096), None),
        ("transformer_blocks.0.attn.to_q", (5120, 5120), None),
    ],
)
def test_base_model_is_guessed_from_the_shape(layer: str, shape: tuple[int, int], model: str | None) -> None:
    assert base_model_of_shape(layer, *shape) == model


def test_shape_of_another_model_is_refused_with_its_name() -> None:
    wide = {"double_blocks.0.img_attn.qkv": (torch.ones(1, 6144), torch.ones(18432, 1))}
    with pytest.raises(InvalidLoraFile, match=r"FLUX\.2 dev"):
        StateDictConverter(FLUX, max_rank=16).convert(lora_files.with_underscores(wide, "lora_unet_"), {})
