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
from serve.engine.attention import Attention, choose_attention, native_attention
from serve.engine.checkpoint_files import checkpoint_folder, load_network, model_load_errors
from serve.engine.compilation import CHANNELS_LAST, compile_forward
from serve.engine.compute_dtype import choose_compute_dtype
from serve.engine.fp8_kernel import KernelName, choose_fp8_kernel
from serve.engine.lora_layers import LoraSlots
from serve.errors import ModelLoadError
from serve.model_specs import MODEL_SPECS
from serve.settings import Dtype, Dtypes, ModelSettings, PoolSettings

PATCH_SIZE = 2
"""Latents per side of a transformer token."""
MAX_LORA_SLOTS = 4096
"""Upper limit: 8 images with 2 LoRAs of rank 256 each. `lora_bytes`, sized for FLUX.1, is too much for small models."""
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_AUTO_WEIGHTS = torch.bfloat16
"""With the dtype `auto`, weights are rounded to bf16 whatever they are computed in, so they are the same everywhere."""
_FLOAT32 = Dtypes(transformer="float32", text_encoders="float32", vae="float32")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Networks in evaluation mode without gradients, and what the engine needs to know about them.

    The transformer computes in its `dtype`, whatever the precision of its weights.
    """

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
    attention: Attention = native_attention
    """Of the transformer."""


def load_checkpoint(model: ModelSettings, pool: PoolSettings, hf_token: str | None) -> Checkpoint:
    """The checkpoint of `model` on the device, and with the dtypes and precision, of `pool`.

    Takes seconds for an embedded model, minutes for FLUX.1. Raises `ModelLoadError` with what the operator can do.
    """
    start_s = time.monotonic()
    device = _device(pool)
    checkpoint = _read(checkpoint_folder(model, hf_token), model, pool, device)
    _check(checkpoint, model)
    checkpoint = place_on_device(checkpoint, pool)
    _log.info(
        "loaded %s from %s on %s in %.1f s; transformer: %.1f MB, LoRA slots: %d",
        model.variant,
        model.source,
        device,
        time.monotonic() - start_s,
        quantize.weight_bytes(checkpoint.transformer) / 1e6,
        checkpoint.lora_slots.count,
    )
    return checkpoint


def place_on_device(checkpoint: Checkpoint, pool: PoolSettings) -> Checkpoint:
    """Moves networks in the dtypes of their weights to the device, quantizes and compiles them, and adds LoRA slots.

    Benchmarks call it with networks that they make themselves.
    """
    _move_to_device(checkpoint, pool)
    _compile(checkpoint, pool)
    networks = {"transformer": checkpoint.transformer, "clip": checkpoint.clip}
    lora_slots = LoraSlots(networks, pool.lora_bytes, MAX_LORA_SLOTS, pool.lora_product_per_batch)
    return replace(checkpoint, lora_slots=lora_slots, attention=_attention(checkpoint, pool))


def _compile(checkpoint: Checkpoint, pool: PoolSettings) -> None:
    """Compiles the networks that run as a whole. The denoiser compiles the transformer block by block."""
    if "vae" in pool.compiled_parts:
        compile_forward("the VAE's encoder", checkpoint.vae.encoder, options=CHANNELS_LAST)
        compile_forward("the VAE's decoder", checkpoint.vae.decoder, options=CHANNELS_LAST)
    if "text_encoders" in pool.compiled_parts:
        compile_forward("T5", checkpoint.t5)


def _attention(checkpoint: Checkpoint, pool: PoolSettings) -> Attention:
    transformer = checkpoint.transformer
    heads, head_dim = transformer.config.num_attention_heads, transformer.config.attention_head_dim
    return choose_attention(pool.attention, checkpoint.device, heads, head_dim, transformer.dtype)


def _device(pool: PoolSettings) -> torch.device:
    if pool.device == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(pool.model, "the pool's device is cuda, but no GPU is visible here; set `device` to cpu")
    return torch.device(pool.device)


def _read(folder: Path, model: ModelSettings, pool: PoolSettings, device: torch.device) -> Checkpoint:
    """All networks in the dtypes of their weights, still on the CPU."""
    dtypes = _dtypes(pool)
    text_dtype = _weights_dtype(dtypes.text_encoders)
    with model_load_errors(model.source):
        transformer = load_network(FluxTransformer2DModel, folder / "transformer", _weights_dtype(dtypes.transformer))
        vae = load_network(AutoencoderKL, folder / "vae", _weights_dtype(dtypes.vae))
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


def _dtypes(pool: PoolSettings) -> Dtypes:
    return _FLOAT32 if pool.precision == "float32" else pool.dtypes[pool.device]


def _weights_dtype(setting: Dtype) -> torch.dtype:
    return _AUTO_WEIGHTS if setting == "auto" else _DTYPES[setting]


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
    """Moves the networks to the device in the dtypes they compute in.

    Networks that the pool wants in float8 are quantized layer by layer. Instead of quanto's layers, a CPU that computes
    in float32 gets weights rounded to float8: quanto would convert them in every step, which makes steps 1.5 times as
    slow.
    """
    dtypes = _dtypes(pool)
    uses_auto = "auto" in (dtypes.transformer, dtypes.text_encoders, dtypes.vae)
    width = checkpoint.transformer.inner_dim
    auto_dtype = choose_compute_dtype(checkpoint.device, width) if uses_auto else _AUTO_WEIGHTS
    kernel = _fp8_kernel(checkpoint, pool)
    for network, setting, fp8_kernel in (
        (checkpoint.transformer, dtypes.transformer, kernel),
        (checkpoint.t5, dtypes.text_encoders, "quanto" if pool.quantize_t5 else None),
        (checkpoint.clip, dtypes.text_encoders, None),
        (checkpoint.vae, dtypes.vae, None),
    ):
        in_float32 = auto_dtype == torch.float32 if setting == "auto" else setting == "float32"
        if fp8_kernel == "quanto" and in_float32 and pool.device == "cpu":
            quantize.round_to_float8(network)
            fp8_kernel = None
        if in_float32:
            network.float()
        if fp8_kernel is not None:
            quantize.quantize_network(network, fp8_kernel, checkpoint.device)
        network.to(checkpoint.device)


def _fp8_kernel(checkpoint: Checkpoint, pool: PoolSettings) -> KernelName | None:
    if pool.precision != "fp8":
        return None
    return choose_fp8_kernel(pool.fp8_kernel, checkpoint.transformer, checkpoint.device)
