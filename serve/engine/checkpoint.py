"""Loads the networks of a FLUX checkpoint onto a device.

It compares the settings of a model with its files, so other modules can rely on them.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from serve.engine import quantize
from serve.engine.checkpoint_files import checkpoint_folder, load_network, model_load_errors
from serve.engine.lora_layers import LoraSlots
from serve.errors import ModelLoadError
from serve.model_specs import MODEL_SPECS
from serve.settings import Dtypes, ModelSettings, PoolSettings

PATCH_SIZE = 2
"""Latents per side of a transformer token."""
MAX_LORA_SLOTS = 4096
"""Upper limit: 8 images with 2 LoRAs of rank 256 each. `lora_bytes`, sized for FLUX.1, is too much for small models."""
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_FLOAT32 = Dtypes(transformer="float32", text_encoders="float32", vae="float32")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Networks in evaluation mode without gradients, and what the engine needs to know about them."""

    transformer: FluxTransformer2DModel
    vae: AutoencoderKL
    clip: CLIPTextModel
    clip_tokenizer: CLIPTokenizer
    t5: T5EncoderModel
    t5_tokenizer: T5TokenizerFast
    noise_scheduler_config: Mapping[str, Any]
    pixel_stride: int
    """Pixels per side of a transformer token."""
    max_sequence_length: int
    """Length to which T5 pads and truncates every prompt."""
    guidance_embeds: bool
    """The transformer has a guidance embedding."""
    device: torch.device
    lora_slots: LoraSlots = field(default_factory=lambda: LoraSlots({}, 0))
    """Of the linear layers of the transformer and of CLIP."""


def load_checkpoint(model: ModelSettings, pool: PoolSettings, hf_token: str | None) -> Checkpoint:
    """The checkpoint of `model` on the device, and with the dtypes and precision, of `pool`.

    Takes seconds for an embedded model, minutes for FLUX.1. Raises `ModelLoadError` with what the operator can do.
    """
    start_s = time.monotonic()
    device = _device(pool)
    checkpoint = _read(checkpoint_folder(model, hf_token), model, pool, device)
    _check(checkpoint, model)
    _move_to_device(checkpoint, pool)
    networks = {"transformer": checkpoint.transformer, "clip": checkpoint.clip}
    lora_slots = LoraSlots(networks, pool.lora_bytes, MAX_LORA_SLOTS)
    _log.info(
        "loaded %s from %s on %s in %.1f s; transformer: %.1f MB, LoRA slots: %d",
        model.variant,
        model.source,
        device,
        time.monotonic() - start_s,
        quantize.weight_bytes(checkpoint.transformer) / 1e6,
        lora_slots.count,
    )
    return replace(checkpoint, lora_slots=lora_slots)


def _device(pool: PoolSettings) -> torch.device:
    if pool.device == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(pool.model, "the pool's device is cuda, but no GPU is visible here; set `device` to cpu")
    return torch.device(pool.device)


def _read(folder: Path, model: ModelSettings, pool: PoolSettings, device: torch.device) -> Checkpoint:
    """All networks in their final dtypes, still on the CPU."""
    dtypes = _FLOAT32 if pool.precision == "float32" else pool.dtypes[pool.device]
    text_dtype = _DTYPES[dtypes.text_encoders]
    with model_load_errors(model.source):
        transformer = load_network(FluxTransformer2DModel, folder / "transformer", _DTYPES[dtypes.transformer])
        vae = load_network(AutoencoderKL, folder / "vae", _DTYPES[dtypes.vae])
        return Checkpoint(
            transformer=transformer,
            vae=vae,
            clip=load_network(CLIPTextModel, folder / "text_encoder", text_dtype),
            clip_tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
            t5=load_network(T5EncoderModel, folder / "text_encoder_2", text_dtype),
            t5_tokenizer=T5TokenizerFast.from_pretrained(folder / "tokenizer_2", local_files_only=True),
            noise_scheduler_config=FlowMatchEulerDiscreteScheduler.load_config(
                folder / "scheduler", local_files_only=True
            ),
            pixel_stride=PATCH_SIZE * 2 ** (len(vae.config.block_out_channels) - 1),
            max_sequence_length=model.max_sequence_length,
            guidance_embeds=transformer.config.guidance_embeds,
            device=device,
        )


def _check(checkpoint: Checkpoint, model: ModelSettings) -> None:
    """Raises `ModelLoadError` for the first contradiction between the settings and the files, or among the files."""
    spec = MODEL_SPECS[model.variant]
    longest = min(spec.max_sequence_length, checkpoint.t5_tokenizer.model_max_length)
    has = {True: "has a guidance embedding", False: "has no guidance embedding"}
    transformer, stride = checkpoint.transformer.config, checkpoint.pixel_stride
    rules = (
        (
            checkpoint.guidance_embeds == spec.guidance_embeds,
            f"it {has[checkpoint.guidance_embeds]}, so it is not {model.variant}; correct `variant` or `source`",
        ),
        (stride == model.pixel_stride, f"its pixel stride is {stride}; set `pixel_stride: {stride}`"),
        (
            model.max_sequence_length <= longest,
            f"its sequence length is at most {longest}; set `max_sequence_length: {longest}` or less",
        ),
        *(
            (expected == actual, f"its transformer expects {what} of width {expected}, but they have width {actual}")
            for what, expected, actual in (
                ("T5 embeddings", transformer.joint_attention_dim, checkpoint.t5.config.d_model),
                ("CLIP embeddings", transformer.pooled_projection_dim, checkpoint.clip.config.hidden_size),
                ("latents", transformer.in_channels, checkpoint.vae.config.latent_channels * PATCH_SIZE**2),
            )
        ),
    )
    for holds, why in rules:
        if not holds:
            raise ModelLoadError(model.source, why)


def _move_to_device(checkpoint: Checkpoint, pool: PoolSettings) -> None:
    """Moves the networks to the device, quantizing those that the pool wants in float8 layer by layer."""
    quantized = {checkpoint.transformer: pool.precision == "fp8", checkpoint.t5: pool.quantize_t5}
    for network in (checkpoint.transformer, checkpoint.t5, checkpoint.clip, checkpoint.vae):
        if quantized.get(network, False):
            quantize.quantize_to_float8(network, checkpoint.device)
        else:
            network.to(checkpoint.device)
