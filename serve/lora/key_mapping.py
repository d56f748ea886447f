"""Maps tensor names in LoRA files to layers of the model."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from serve.lora.decompositions import SUFFIXES
from serve.lora.model_geometry import ModelGeometry, Shape
from serve.lora.safetensors_header import InvalidLoraFile, display_name
from serve.lora.signatures import detect_base_model, detect_method

Part = Literal["transformer", "clip"]

_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_TEXT_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")

# Layer names of Black Forest Labs' reference code (`flux/model.py`, `flux/modules/layers.py`) to those of diffusers.
# ComfyUI and kohya's sd-scripts use them too; sd-scripts replaces the dots by underscores. The names that start with
# `processor` are those of XLabs' x-flux, which adapts attention only.
_DOUBLE_BLOCK = {
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
_SINGLE_BLOCK = {
    "linear1": (*_QKV, "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
    "processor.qkv_lora": _QKV,
    "processor.proj_lora": ("proj_out",),
}
_OUTER_LAYERS = {
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
_SHIFT_BEFORE_SCALE = {"final_layer.adaLN_modulation.1"}
"""Black Forest Labs' code stacks shift and scale, diffusers scale and shift. See diffusers' `swap_scale_shift`."""

_PREFIXES = (
    "base_model.model.",  # PEFT
    "model.diffusion_model.",  # checkpoints with all models in one file
    "diffusion_model.",  # ComfyUI, ai-toolkit
    "transformer.",  # diffusers
    "text_encoders.clip_l.transformer.",  # ComfyUI
    "text_encoder.",  # diffusers
    "lora_unet_",  # kohya's sd-scripts
    "lora_transformer_",  # OneTrainer
    "lora_te1_",  # kohya's sd-scripts: CLIP
    "lora_te_",  # kohya's sd-scripts, for models with one text encoder
    "lycoris_",  # LyCORIS
)
_OTHER_TEXT_ENCODER_PREFIXES = (
    "text_encoder_2.",
    "text_encoders.t5",
    "text_encoders.clip_g",
    "lora_te2_",
    "lora_te3_",
)

_TENSOR_NAME = re.compile(rf"(?P<layer>.+?)\.(?P<suffix>{'|'.join(re.escape(suffix) for suffix in SUFFIXES)})")
_ADAPTER_NAME = re.compile(r"(\.lora_[AB])\.[^.]+(\.(?:weight|bias))$")
"""PEFT can include the name of the adapter, as in `lora_A.default.weight`."""
_BLOCK_NUMBER = re.compile(r"(blocks[._])\d+")

_DELTA = re.compile(r"\.(diff|diff_b|w_norm|b_norm|lora_(A|down)(\.\w+)?\.bias)$")
"""Changes of a parameter, such as the scale of a norm, and a bias between the two matrices of a LoRA."""
_WHOLE_WEIGHT = re.compile(r"(?P<layer>.+?)(\.modules_to_save(\.\w+)?)?\.(weight|bias|set_weight)")
_UNUSED_LAYER = re.compile(r"guidance_(in|embedder)|text_projection")
"""Layers that some models do not have, or that FLUX does not use."""


@dataclass(frozen=True, slots=True)
class LayerTarget:
    """The layers of the model that one layer of a LoRA file adapts."""

    part: Part
    layers: tuple[str, ...]
    """Layers in diffusers; several if the file fuses them. Their outputs are stacked in this order."""
    halves_swapped: bool = False
    """The halves of the outputs are in the opposite order to diffusers'."""
    is_native: bool = False
    """The file uses the model's own name, which wins if it also has the layer under another name."""


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """All tensors of one layer in a LoRA file."""

    name: str
    """The name of the layer in the file."""
    target: LayerTarget
    tensors: Mapping[str, torch.Tensor]
    """By role."""


@dataclass(frozen=True, slots=True)
class GroupedTensors:
    groups: tuple[TensorGroup, ...]
    """Groups with native names first, so that they win over others for the same layer."""
    unapplied: Mapping[str, str]
    """Name of a tensor to the reason why it is not applied."""


def layer_shapes(geometry: ModelGeometry) -> Mapping[tuple[Part, str], Shape]:
    """The shape of every layer that a LoRA can adapt."""
    return {
        **{("transformer", name): shape for name, shape in geometry.transformer_layers().items()},
        **{("clip", name): shape for name, shape in geometry.clip_layers().items()},
    }


def layer_targets(geometry: ModelGeometry) -> Mapping[str, LayerTarget]:
    """Every supported layer name without its prefix, with dots and with underscores, to its target."""
    targets: dict[str, LayerTarget] = {}
    for name, target in (*_native_names(geometry), *_reference_names(geometry)):
        targets[name] = targets[name.replace(".", "_")] = target
    return targets


def _native_names(geometry: ModelGeometry) -> Iterator[tuple[str, LayerTarget]]:
    """The names of diffusers and transformers."""
    for name in geometry.transformer_layers():
        yield name, LayerTarget("transformer", (name,), is_native=True)
    for name in geometry.clip_layers():
        yield name, LayerTarget("clip", (name,), is_native=True)
        # Before transformers 5, the layers of CLIPTextModel were in a submodule `text_model`.
        yield f"text_model.{name}", LayerTarget("clip", (name,), is_native=True)


def _reference_names(geometry: ModelGeometry) -> Iterator[tuple[str, LayerTarget]]:
    """The names of Black Forest Labs' reference code and of XLabs."""
    for block in range(geometry.double_blocks):
        for name, stacked in _DOUBLE_BLOCK.items():
            layers = tuple(f"transformer_blocks.{block}.{layer}" for layer in stacked)
            yield f"double_blocks.{block}.{name}", LayerTarget("transformer", layers)
    for block in range(geometry.single_blocks):
        for name, stacked in _SINGLE_BLOCK.items():
            layers = tuple(f"single_transformer_blocks.{block}.{layer}" for layer in stacked)
            yield f"single_blocks.{block}.{name}", LayerTarget("transformer", layers)
    existing = geometry.transformer_layers()
    for name, layer in _OUTER_LAYERS.items():
        if layer in existing:
            yield name, LayerTarget("transformer", (layer,), halves_swapped=name in _SHIFT_BEFORE_SCALE)


def group_tensors(tensors: Mapping[str, torch.Tensor], targets: Mapping[str, LayerTarget]) -> GroupedTensors:
    """Groups the tensors of a file by layer.

    Raises `InvalidLoraFile` if the file is for another base model, or has changes that cannot be applied.
    """
    groups: dict[str, dict[str, torch.Tensor]] = {}
    unapplied: dict[str, str] = {}
    for name, tensor in tensors.items():
        layer, role = _parse_tensor_name(name)
        if layer.startswith(_OTHER_TEXT_ENCODER_PREFIXES):
            unapplied[name] = "only the CLIP text encoder can be adapted"
        elif role and strip_prefixes(layer) in targets:
            group = groups.setdefault(layer, {})
            if role in group:
                raise InvalidLoraFile(f"it has two {role} tensors for the layer {display_name(layer)}")
            group[role] = tensor
        elif role:
            unapplied[name] = "this model has no such linear layer"
        else:
            unapplied[name] = "only the low-rank matrices and biases of linear layers are applied"
    _check_base_model(unapplied, targets)
    _check_methods(tensors, targets)
    found = (TensorGroup(layer, targets[strip_prefixes(layer)], group) for layer, group in groups.items())
    return GroupedTensors(
        tuple(sorted(found, key=lambda group: not group.target.is_native)), _without_zero_deltas(unapplied, tensors)
    )


def module_name(layer: str) -> str:
    """The name of a layer in the model that was trained."""
    # PEFT adds its own prefix and nothing else. The other trainers add prefixes of their own.
    name = layer.removeprefix(_PREFIXES[0])
    return strip_prefixes(layer) if name == layer else name


def strip_prefixes(name: str) -> str:
    """`name` without the prefixes that trainers add to layer names."""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return strip_prefixes(name.removeprefix(prefix))
    return name


def _parse_tensor_name(name: str) -> tuple[str, str | None]:
    """Layer and role of a tensor; the role is None for an unknown suffix."""
    match = _TENSOR_NAME.fullmatch(_ADAPTER_NAME.sub(r"\1\2", name))
    return (match["layer"], SUFFIXES[match["suffix"]]) if match else (name, None)


def _check_base_model(unapplied: Iterable[str], targets: Mapping[str, LayerTarget]) -> None:
    names = tuple(unapplied)
    if base_model := detect_base_model(names):
        raise InvalidLoraFile(f"it is made for {base_model}, not for FLUX.1")
    for name in names:
        layer = strip_prefixes(_parse_tensor_name(name)[0])
        if layer not in targets and _BLOCK_NUMBER.sub(r"\g<1>0", layer) in targets:
            raise InvalidLoraFile(f"it is made for a model with more blocks: this one has no {display_name(name)}")


def _check_methods(names: Iterable[str], targets: Mapping[str, LayerTarget]) -> None:
    for name in names:
        if method := detect_method(name):
            raise InvalidLoraFile(f"it uses {method}; only LoRA, LoHa and LoKr are supported (in {display_name(name)})")
    for name in names:
        match = _WHOLE_WEIGHT.fullmatch(name)
        if match and strip_prefixes(match["layer"]) in targets:
            raise InvalidLoraFile(
                f"it replaces the whole weight or bias {display_name(name)}; a fine-tune or checkpoint is not a LoRA; "
                "extract a LoRA from it"
            )


def _without_zero_deltas(unapplied: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Drops changes that are zero. Raises `InvalidLoraFile` for others, as the image would not be the intended one."""
    kept = {}
    for name, why in unapplied.items():
        if name.startswith(_OTHER_TEXT_ENCODER_PREFIXES) or _UNUSED_LAYER.search(name) or not _DELTA.search(name):
            kept[name] = why
        elif tensors[name].float().count_nonzero():
            raise InvalidLoraFile(
                f"it changes {display_name(name)}, which cannot be applied: {why}; train or extract it without norms"
            )
    return kept
