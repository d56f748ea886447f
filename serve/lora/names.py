"""Which layers of the model a published name means: tables of the naming schemes, filled in for one geometry. Pure.

diffusers' names are the model's own; Black Forest Labs' code fuses layers that diffusers has apart; XLabs names
attention processors; kohya's scripts and LyCORIS write either scheme with underscores for dots.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from serve.lora.geometry import Geometry, Shape

Part = Literal["transformer", "clip"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where one published pair of matrices goes."""

    part: Part
    layers: tuple[str, ...]
    """Layers of the model that it is split for: their outputs are stacked in this order."""
    halves_swapped: bool = False
    """Published with the first half of the outputs behind the second."""
    own: bool = False
    """The name is the model's own, which wins where a file holds a layer under two names."""


_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_TEXT_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_DOUBLE = {
    "img_attn.qkv": _QKV,
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": _TEXT_QKV,
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
    "processor.qkv_lora1": _QKV,
    "processor.proj_lora1": ("attn.to_out.0",),
    "processor.qkv_lora2": _TEXT_QKV,
    "processor.proj_lora2": ("attn.to_add_out",),
}
_SINGLE = {
    "linear1": (*_QKV, "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
    "processor.qkv_lora": _QKV,
    "processor.proj_lora": ("proj_out",),
}
_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_SWAPPED = {"final_layer.adaLN_modulation.1"}
"""Black Forest Labs' code has the shift first and then the scale, diffusers the other way round."""

_PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "text_encoders.clip_l.transformer.",
    "text_encoder.",
    "lora_unet_",
    "lora_transformer_",
    "lora_te1_",
    "lora_te_",
    "lycoris_",
)
_OTHER_TEXT_ENCODERS = ("text_encoder_2.", "text_encoders.t5", "text_encoders.clip_g", "lora_te2_", "lora_te3_")


def layers(geometry: Geometry) -> Mapping[tuple[Part, str], Shape]:
    """The shape of every layer that a LoRA can act on."""
    return {
        **{("transformer", name): shape for name, shape in geometry.transformer_layers().items()},
        **{("clip", name): shape for name, shape in geometry.clip_layers().items()},
    }


def targets(geometry: Geometry) -> Mapping[str, Target]:
    """Every published name of a layer, without its prefix, in each spelling."""
    found: dict[str, Target] = {}
    for name, target in (*_own_names(geometry), *_published_names(geometry)):
        found[name] = found[name.replace(".", "_")] = target
    return found


def bare(name: str) -> str:
    """`name` without the prefixes that trainers put before it."""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return bare(name.removeprefix(prefix))
    return name


def is_of_another_text_encoder(name: str) -> bool:
    """Whether `name` is a layer of a text encoder beside CLIP: T5's, or that of another model."""
    return name.startswith(_OTHER_TEXT_ENCODERS)


def _own_names(geometry: Geometry) -> Iterator[tuple[str, Target]]:
    for name in geometry.transformer_layers():
        yield name, Target("transformer", (name,), own=True)
    for name in geometry.clip_layers():
        yield name, Target("clip", (name,), own=True)
        # Until its release 5, transformers kept the text model one level deeper.
        yield f"text_model.{name}", Target("clip", (name,), own=True)


def _published_names(geometry: Geometry) -> Iterator[tuple[str, Target]]:
    for block in range(geometry.double_blocks):
        for name, stacked in _DOUBLE.items():
            own = tuple(f"transformer_blocks.{block}.{layer}" for layer in stacked)
            yield f"double_blocks.{block}.{name}", Target("transformer", own)
    for block in range(geometry.single_blocks):
        for name, stacked in _SINGLE.items():
            own = tuple(f"single_transformer_blocks.{block}.{layer}" for layer in stacked)
            yield f"single_blocks.{block}.{name}", Target("transformer", own)
    known = geometry.transformer_layers()
    for name, layer in _OUTSIDE.items():
        if layer in known:
            yield name, Target("transformer", (layer,), halves_swapped=name in _SWAPPED)
