"""Maps tensor names in LoRA files to layers of the model."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from serve.lora.decompositions import SUFFIXES
from serve.lora.model_geometry import ModelGeometry, Shape
from serve.lora.safetensors_header import InvalidLoraFile, shown

Part = Literal["transformer", "clip"]


@dataclass(frozen=True, slots=True)
class LayerTarget:
    """Where one published pair of matrices goes."""

    part: Part
    layers: tuple[str, ...]
    """Layers of the model that it is split for: their outputs are stacked in this order."""
    halves_swapped: bool = False
    """Published with the first half of the outputs behind the second."""
    is_native: bool = False
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


def layer_shapes(geometry: ModelGeometry) -> Mapping[tuple[Part, str], Shape]:
    """The shape of every layer that a LoRA can act on."""
    return {
        **{("transformer", name): shape for name, shape in geometry.transformer_layers().items()},
        **{("clip", name): shape for name, shape in geometry.clip_layers().items()},
    }


def layer_targets(geometry: ModelGeometry) -> Mapping[str, LayerTarget]:
    """Every published name of a layer, without its prefix, in each spelling."""
    found: dict[str, LayerTarget] = {}
    for name, target in (*_own_names(geometry), *_published_names(geometry)):
        found[name] = found[name.replace(".", "_")] = target
    return found


def strip_prefixes(name: str) -> str:
    """`name` without the prefixes that trainers put before it."""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return strip_prefixes(name.removeprefix(prefix))
    return name


def is_other_text_encoder(name: str) -> bool:
    """Whether `name` is a layer of a text encoder beside CLIP: T5's, or that of another model."""
    return name.startswith(_OTHER_TEXT_ENCODERS)


def _own_names(geometry: ModelGeometry) -> Iterator[tuple[str, LayerTarget]]:
    for name in geometry.transformer_layers():
        yield name, LayerTarget("transformer", (name,), is_native=True)
    for name in geometry.clip_layers():
        yield name, LayerTarget("clip", (name,), is_native=True)
        # Until its release 5, transformers kept the text model one level deeper.
        yield f"text_model.{name}", LayerTarget("clip", (name,), is_native=True)


def _published_names(geometry: ModelGeometry) -> Iterator[tuple[str, LayerTarget]]:
    for block in range(geometry.double_blocks):
        for name, stacked in _DOUBLE.items():
            own = tuple(f"transformer_blocks.{block}.{layer}" for layer in stacked)
            yield f"double_blocks.{block}.{name}", LayerTarget("transformer", own)
    for block in range(geometry.single_blocks):
        for name, stacked in _SINGLE.items():
            own = tuple(f"single_transformer_blocks.{block}.{layer}" for layer in stacked)
            yield f"single_blocks.{block}.{name}", LayerTarget("transformer", own)
    known = geometry.transformer_layers()
    for name, layer in _OUTSIDE.items():
        if layer in known:
            yield name, LayerTarget("transformer", (layer,), halves_swapped=name in _SWAPPED)


BASE_MODELS = tuple(
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


def detect_base_model(names: Iterable[str]) -> str | None:
    """The model that calls its layers as `names` do, or None where no table knows them; the surest sign decides."""
    listed = tuple(names)
    return next((found for pattern, found in BASE_MODELS if any(pattern.search(name) for name in listed)), None)


_ENDING = re.compile(rf"(?P<layer>.+?)\.(?P<suffix>{'|'.join(re.escape(suffix) for suffix in SUFFIXES)})")
_ADAPTER = re.compile(r"(\.lora_[AB])\.[^.]+(\.weight)$")
"""PEFT may put the name of the adapter between."""
_BLOCK = re.compile(r"(blocks[._])\d+")


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """All tensors of one published layer."""

    name: str
    """As in the file."""
    target: LayerTarget
    tensors: Mapping[str, torch.Tensor]
    """By role."""


@dataclass(frozen=True, slots=True)
class GroupedTensors:
    groups: tuple[TensorGroup, ...]
    """The model's own names first: where a file has a layer under two names, they are the ones that count."""
    unapplied: Mapping[str, str]
    """Name of a tensor to the reason why it is not applied."""


def group_tensors(tensors: Mapping[str, torch.Tensor], known: Mapping[str, LayerTarget]) -> GroupedTensors:
    """Sorts the tensors of a file by the names that are known.

    Raises `InvalidLoraFile` where they show that the file was made for another model.
    """
    groups: dict[str, dict[str, torch.Tensor]] = {}
    unused: dict[str, str] = {}
    for name, tensor in tensors.items():
        layer, role = _read(name)
        if is_other_text_encoder(layer):
            unused[name] = "only the CLIP text encoder is adapted here"
        elif role and strip_prefixes(layer) in known:
            group = groups.setdefault(layer, {})
            if role in group:
                raise InvalidLoraFile(f"it has the layer {shown(layer)} twice")
            group[role] = tensor
        elif role:
            unused[name] = "this model has no such layer that could be adapted"
        else:
            unused[name] = "only the low-rank matrices of linear layers are applied"
    _check_model(unused, known)
    found = (TensorGroup(layer, known[strip_prefixes(layer)], group) for layer, group in groups.items())
    return GroupedTensors(tuple(sorted(found, key=lambda group: not group.target.is_native)), unused)


def _read(name: str) -> tuple[str, str | None]:
    """The layer that a tensor belongs to, and its role; None for what no trainer calls a part of a LoRA."""
    match = _ENDING.fullmatch(_ADAPTER.sub(r"\1\2", name))
    return (match["layer"], SUFFIXES[match["suffix"]]) if match else (name, None)


def _check_model(unused: Mapping[str, str], known: Mapping[str, LayerTarget]) -> None:
    other = detect_base_model(unused)
    if other:
        raise InvalidLoraFile(f"it is made for {other}, not for FLUX.1")
    for name in unused:
        layer = strip_prefixes(_read(name)[0])
        if layer not in known and _BLOCK.sub(r"\g<1>0", layer) in known:
            raise InvalidLoraFile(f"it is made for another model: this one has fewer blocks than {shown(name)} needs")
