"""Detects the base model of a LoRA file by its tensor names."""

from collections.abc import Callable

import pytest

from serve.lora.signatures import detect_base_model
from tests.unit.lora import lora_files
from tests.unit.lora.geometries import FLUX

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
    assert detect_base_model(spell(name) for name in FLUX_NAMES) is None


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "Stable Diffusion"),
        ("unet.up_blocks.1.attentions.0.to_q.lora_A.weight", "Stable Diffusion"),
        ("lora_unet_middle_block_1_proj_in.alpha", "Stable Diffusion"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha", "Stable Diffusion XL"),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "Stable Diffusion XL"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.alpha", "Stable Diffusion 3"),
        ("diffusion_model.double_stream_modulation_img.lin.lora_A.weight", "FLUX.2"),
        ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight", "FLUX.2"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "Wan"),
        ("lora_unet_blocks_0_cross_attn_k.alpha", "Wan"),
        ("diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight", "Hunyuan Video"),
        ("transformer_blocks.0.img_mlp.net.0.proj.lora_A.weight", "Qwen-Image"),
        ("transformer_blocks.0.txt_mod.1.lora_A.weight", "Qwen-Image"),
        ("diffusion_model.double_stream_blocks.0.block.attn1.to_q.lora_A.weight", "HiDream"),
        ("diffusion_model.layers.0.attention.to_q.lora_A.weight", "Lumina or Z-Image"),
        ("distilled_guidance_layer.layers.0.in_layer.lora_A.weight", "Chroma"),
    ],
)
def test_other_base_model_is_detected(name: str, model: str) -> None:
    assert detect_base_model([*FLUX_NAMES, name]) == model
