"""Maps tensor names in LoRA files to layers of the model."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from serve.lora.decompositions import SUFFIXES
from serve.lora.model_geometry import Geometry, Shape
from serve.lora.safetensors_header import BadFile, shown

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


FAMILIES = tuple(
    (re.compile(pattern), family)
    for pattern, family in (
        (r"lora_te2_text_model|text_encoder_2\.text_model|add_embedding|label_emb", "Stable Diffusion XL"),
        (r"(^|[._])(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)[._]", "Stable Diffusion"),
        (r"(^|[._])joint_blocks[._]", "Stable Diffusion 3"),
        (r"(double|single)_stream_modulation|attn[._]to_qkv_mlp_proj", "FLUX.2"),
        (r"(^|[._])blocks[._]\d+[._](self_attn|cross_attn|ffn)[._]", "Wan"),
        (r"\.(img|txt)_attn_qkv|(img|txt)_mlp[._]fc\d|individual_token_refiner", "Hunyuan Video"),
        (r"(img|txt)_mlp[._]net[._]|(img|txt)_mod[._]1([._]|$)", "Qwen-Image"),
        (r"(double|single)_stream_blocks[._]", "HiDream"),
        (r"(^|[._])layers[._]\d+[._](attention|feed_forward|adaLN_modulation)[._]", "Lumina or Z-Image"),
        (r"(^|[._])distilled_guidance_layer[._]", "Chroma"),
    )
)


def family(names: Iterable[str]) -> str | None:
    """The model that calls its layers as `names` do, or None where no table knows them; the surest sign decides."""
    listed = tuple(names)
    return next((found for pattern, found in FAMILIES if any(pattern.search(name) for name in listed)), None)


_ENDING = re.compile(rf"(?P<layer>.+?)\.(?P<suffix>{'|'.join(re.escape(suffix) for suffix in SUFFIXES)})")
_ADAPTER = re.compile(r"(\.lora_[AB])\.[^.]+(\.weight)$")
"""PEFT may put the name of the adapter between."""
_BLOCK = re.compile(r"(blocks[._])\d+")


@dataclass(frozen=True, slots=True)
class Group:
    """All tensors of one published layer."""

    name: str
    """As in the file."""
    target: Target
    tensors: Mapping[str, torch.Tensor]
    """By role."""


@dataclass(frozen=True, slots=True)
class Inventory:
    groups: tuple[Group, ...]
    """The model's own names first: where a file has a layer under two names, they are the ones that count."""
    unused: Mapping[str, str]
    """Name of a tensor to the reason why it is not applied."""


def take_stock(tensors: Mapping[str, torch.Tensor], known: Mapping[str, Target]) -> Inventory:
    """Sorts the tensors of a file by the names that are known.

    Raises `BadFile` where they show that the file was made for another model.
    """
    groups: dict[str, dict[str, torch.Tensor]] = {}
    unused: dict[str, str] = {}
    for name, tensor in tensors.items():
        layer, role = _read(name)
        if is_of_another_text_encoder(layer):
            unused[name] = "only the CLIP text encoder is adapted here"
        elif role and bare(layer) in known:
            group = groups.setdefault(layer, {})
            if role in group:
                raise BadFile(f"it has the layer {shown(layer)} twice")
            group[role] = tensor
        elif role:
            unused[name] = "this model has no such layer that could be adapted"
        else:
            unused[name] = "only the low-rank matrices of linear layers are applied"
    _check_model(unused, known)
    found = (Group(layer, known[bare(layer)], group) for layer, group in groups.items())
    return Inventory(tuple(sorted(found, key=lambda group: not group.target.own)), unused)


def _read(name: str) -> tuple[str, str | None]:
    """The layer that a tensor belongs to, and its role; None for what no trainer calls a part of a LoRA."""
    match = _ENDING.fullmatch(_ADAPTER.sub(r"\1\2", name))
    return (match["layer"], SUFFIXES[match["suffix"]]) if match else (name, None)


def _check_model(unused: Mapping[str, str], known: Mapping[str, Target]) -> None:
    other = family(unused)
    if other:
        raise BadFile(f"it is made for {other}, not for FLUX.1")
    for name in unused:
        layer = bare(_read(name)[0])
        if layer not in known and _BLOCK.sub(r"\g<1>0", layer) in known:
            raise BadFile(f"it is made for another model: this one has fewer blocks than {shown(name)} needs")
