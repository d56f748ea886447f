"""A loaded checkpoint: the networks of one FLUX model on one device, ready to draw. Knows no schedule, step or request.

What the settings say of a model is checked here against what its files say; nothing behind this module asks again.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from serve.engine import checkpoint_files, quantize
from serve.engine.lora_slots import LoraSlots
from serve.errors import ModelLoadError
from serve.lora.model_geometry import ModelGeometry
from serve.model_specs import EMBEDDED, EMBEDDED_MODELS_FOLDER, MODEL_SPECS
from serve.settings import Dtypes, ModelSettings, PoolSettings

PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
MAX_LORA_ROWS = 4096
"""Rank enough for eight pictures with two of the largest LoRAs each: the bytes that are right for FLUX would hold many
times that of a small model, which runs where memory is scarce."""
_PATCH = 2
"""FLUX packs squares of this many latents a side into one token."""
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_FLOAT32 = Dtypes(transformer="float32", text_encoders="float32", vae="float32")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Networks in evaluation mode without gradients, and the facts that drawing needs."""

    transformer: FluxTransformer2DModel
    vae: AutoencoderKL
    clip: CLIPTextModel
    clip_tokenizer: CLIPTokenizer
    t5: T5EncoderModel
    t5_tokenizer: T5TokenizerFast
    scheduler_config: Mapping[str, Any]
    pixel_stride: int
    """Pixels a side of one transformer token."""
    max_sequence_length: int
    """Length to which every prompt is padded and cut for T5."""
    guidance_embeds: bool
    """The transformer takes a guidance scale."""
    device: torch.device
    lora_slots: LoraSlots = field(default_factory=lambda: LoraSlots({}, 0))
    """Places for LoRAs beside the linears of the transformer and of CLIP."""


def load_checkpoint(model: ModelSettings, pool: PoolSettings, hf_token: str | None) -> Checkpoint:
    """The checkpoint of `model` as `pool` wants it: device, dtypes, precision.

    Takes seconds for the embedded one, minutes for a real one. Raises ModelLoadError, whose text says what to do.
    """
    begin = time.monotonic()
    device = _device(pool)
    folder = _folder(model, hf_token)
    checkpoint = _read(folder, model, pool, device)
    _check(checkpoint, model)
    _place(checkpoint, pool)
    networks = {"transformer": checkpoint.transformer, "clip": checkpoint.clip}
    low_rank = LoraSlots(networks, pool.lora_bytes, MAX_LORA_ROWS)
    _log.info(
        "loaded %s from %s on %s in %.1f s, the transformer takes %.1f MB, LoRAs may have rank %d together",
        model.variant,
        model.source,
        device,
        time.monotonic() - begin,
        quantize.weight_bytes(checkpoint.transformer) / 1e6,
        low_rank.count,
    )
    return replace(checkpoint, lora_slots=low_rank)


def read_geometry(model: ModelSettings, hf_token: str | None) -> ModelGeometry:
    """What LoRAs for `model` must fit, without its weights: of a hub repository two small files are fetched.

    Raises ModelLoadError.
    """
    parts = ("transformer", "text_encoder")
    configs = [f"{part}/config.json" for part in parts]
    folder = checkpoint_files.resolve_folder(_source(model), model.revision, configs, hf_token)
    with checkpoint_files.model_load_errors(model.source):
        transformer, clip = (json.loads((folder / part / "config.json").read_bytes()) for part in parts)
        return ModelGeometry.from_configs(transformer, clip)


def _device(pool: PoolSettings) -> torch.device:
    if pool.device == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(pool.model, "the pool's device is cuda, but no GPU is visible here; set `device` to cpu")
    return torch.device(pool.device)


def _source(model: ModelSettings) -> str:
    return str(EMBEDDED_MODELS_FOLDER / model.variant) if model.source == EMBEDDED else model.source


def _folder(model: ModelSettings, hf_token: str | None) -> Path:
    files = [f"{part}/{kind}" for part in PARTS for kind in _FILES]
    folder = checkpoint_files.resolve_folder(_source(model), model.revision, files, hf_token)
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        why = f"it has no folder {', '.join(missing)}; give a checkpoint in diffusers' layout"
        raise ModelLoadError(model.source, why)
    return folder


def _read(folder: Path, model: ModelSettings, pool: PoolSettings, device: torch.device) -> Checkpoint:
    """Everything in the folder, still on the CPU, each network in the dtype that it will have."""
    dtypes = _FLOAT32 if pool.precision == "float32" else pool.dtypes[pool.device]
    text = _DTYPES[dtypes.text_encoders]
    with checkpoint_files.model_load_errors(model.source):
        transformer = checkpoint_files.load_network(
            FluxTransformer2DModel, folder / "transformer", _DTYPES[dtypes.transformer]
        )
        vae = checkpoint_files.load_network(AutoencoderKL, folder / "vae", _DTYPES[dtypes.vae])
        return Checkpoint(
            transformer=transformer,
            vae=vae,
            clip=checkpoint_files.load_network(CLIPTextModel, folder / "text_encoder", text),
            clip_tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
            t5=checkpoint_files.load_network(T5EncoderModel, folder / "text_encoder_2", text),
            t5_tokenizer=T5TokenizerFast.from_pretrained(folder / "tokenizer_2", local_files_only=True),
            scheduler_config=FlowMatchEulerDiscreteScheduler.load_config(folder / "scheduler", local_files_only=True),
            pixel_stride=_PATCH * 2 ** (len(vae.config.block_out_channels) - 1),
            max_sequence_length=model.max_sequence_length,
            guidance_embeds=transformer.config.guidance_embeds,
            device=device,
        )


def _check(checkpoint: Checkpoint, model: ModelSettings) -> None:
    """Raises ModelLoadError with the first thing that does not fit."""
    variant = MODEL_SPECS[model.variant]
    longest = min(variant.max_sequence_length, checkpoint.t5_tokenizer.model_max_length)
    has = {True: "has a guidance embedding", False: "has no guidance embedding"}
    transformer, stride = checkpoint.transformer.config, checkpoint.pixel_stride
    rules = (
        (
            checkpoint.guidance_embeds == variant.guidance_embeds,
            f"it {has[checkpoint.guidance_embeds]}, so it is not {model.variant}; correct `variant` or `source`",
        ),
        (stride == model.pixel_stride, f"its pixel stride is {stride}; set `pixel_stride: {stride}`"),
        (
            model.max_sequence_length <= longest,
            f"it reads at most {longest} text tokens; set `max_sequence_length: {longest}` or less",
        ),
        *(
            (takes == gives, f"its transformer takes {what} of width {takes}, and gets {gives}; its parts do not fit")
            for what, takes, gives in (
                ("T5 texts", transformer.joint_attention_dim, checkpoint.t5.config.d_model),
                ("CLIP texts", transformer.pooled_projection_dim, checkpoint.clip.config.hidden_size),
                ("latents", transformer.in_channels, checkpoint.vae.config.latent_channels * _PATCH**2),
            )
        ),
    )
    for holds, why in rules:
        if not holds:
            raise ModelLoadError(model.source, why)


def _place(checkpoint: Checkpoint, pool: PoolSettings) -> None:
    """Moves the networks to their device, those that are to be float8 layer by layer."""
    to_float8 = {checkpoint.transformer: pool.precision == "fp8", checkpoint.t5: pool.quantize_t5}
    for network in (checkpoint.transformer, checkpoint.t5, checkpoint.clip, checkpoint.vae):
        if to_float8.get(network, False):
            quantize.quantize_to_float8(network, checkpoint.device)
        else:
            network.to(checkpoint.device)
