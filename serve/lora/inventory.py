"""What a LoRA file holds: its tensors by layer and by role, and those that have no use here, each with the reason.

Knows tensors by their names only.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from serve.lora.factors import SUFFIXES
from serve.lora.family import family
from serve.lora.header import BadFile, shown
from serve.lora.names import Target, bare, is_of_another_text_encoder

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
