"""Adds LoRAs to the outputs of linear layers through preallocated low-rank slots, without changing weights.

Every linear layer has the same number of slots, each a pair of vectors (down, up). For an image that selects slots,
each adds `scale * up * (down . input)` to the layer's output; one with a bias adds `scale * up`. The weights are not
read, so they may have any dtype or be quantized. Slots are allocated once and a selection is a tensor, so a compiled
network is not recompiled for other LoRAs. Slots can instead hold the factors of a Kronecker product.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from serve.engine import device
from serve.engine.float8_linear import compute_dtype
from serve.engine.kronecker import KroneckerSlots
from serve.engine.lora_products import BatchLoras, SelectedSlots, add_loras
from serve.engine.lora_storage import (
    Allocate,
    SlotGroup,
    StagedLora,
    copy_to_slots,
    pageable_memory,
    split_into_groups,
    stage,
)
from serve.lora.weights import Kronecker, LowRank

_MIN_SELECTED_SLOTS = 16
"""Selections are padded to 16, 32, 64, ... slots: matrix units work on tiles of 16, and few shapes occur."""


@dataclass(frozen=True, slots=True, eq=False)
class SlotSelection:
    """The slots that act on an image, each with its scale."""

    scales: Mapping[int, float]
    """By slot."""
    layers: frozenset[str]
    """The linear layers in which some of the slots are not zero."""
    kroneckers: Mapping[str, Sequence[tuple[KroneckerSlots, float]]] = field(default_factory=dict)
    """The Kronecker products of each layer with their scales."""


class LoraSlots:
    """The slots of all linear layers of some networks. Belongs to the thread that runs the networks."""

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        size_bytes: int,
        max_slots: int | None = None,
        product_per_batch: bool = False,
    ) -> None:
        """Allocates as many slots as fit in `size_bytes`, at most `max_slots`, and registers forward hooks.

        Layers are named by network and path, as in `clip.encoder.fc1`. The networks must have their final device,
        dtype and quantization. With `product_per_batch`, all images of a batch share one product, which is fast on a
        GPU; without it, each image has its own, so that its bits do not depend on the other images.
        """
        linears = {
            f"{network}.{path}": module
            for network, root in networks.items()
            for path, module in root.named_modules()
            if isinstance(module, nn.Linear)
        }
        self.slot_bytes = sum(map(_slot_bytes, linears.values()))
        """Memory of one slot in every layer."""
        fitting = max(0, size_bytes // self.slot_bytes - 1) if linears else 0
        self.count = fitting if max_slots is None else min(fitting, max_slots)
        """Slots 1 to `count` can be written."""
        self.groups = split_into_groups(linears, self.count + 1)
        """By the names of the layers; those of one block share a group."""
        self.device = next((linear.weight.device for linear in linears.values()), torch.device("cpu"))
        self.version = 0
        """Changes when a LoRA is loaded."""
        self._product_per_batch = product_per_batch
        self.active: BatchLoras | None = None
        """The LoRAs of the batch that passes through the networks."""
        for name, linear in linears.items():
            linear.register_forward_hook(partial(self._add_to_output, name))

    def stage(self, slots: int, matrices: Mapping[str, LowRank], allocate: Allocate = pageable_memory) -> StagedLora:
        """Converts `matrices`, by layer, to rows of `slots` slots in memory of the host. May run on any thread.

        Raises ValueError for an unknown layer or a wrong shape.
        """
        for name, matrix in matrices.items():
            self._group(name).check(name, matrix, slots)
        return stage(self.groups, slots, matrices, allocate)

    def load(self, slots: Sequence[int], staged: StagedLora) -> None:
        """Copies a staged LoRA to `slots`, and returns when its memory may be written again.

        Layers that it does not adapt get zeros.
        """
        self.version += 1
        index = device.from_host(slots, torch.int64, self.device)
        for group in set(self.groups.values()).difference(staged.groups):
            group.clear(index)
        copy_to_slots(staged, index)
        device.synchronize(self.device)

    def write_kroneckers(self, slots: Sequence[int], kroneckers: Mapping[str, Kronecker]) -> dict[str, KroneckerSlots]:
        """Writes the factors of Kronecker products, by layer, to `slots`, which must not be selected as others are.

        Returns the slots of each layer. Raises ValueError, before anything is written, for an unknown layer or a wrong
        shape.
        """
        for name, kronecker in kroneckers.items():
            self._group(name).check_kronecker(name, kronecker, len(slots))
        index = device.from_host(slots, torch.int64, self.device)
        return {
            name: self.groups[name].write_kronecker(name, index[: kronecker.slots], kronecker)
            for name, kronecker in kroneckers.items()
        }

    def batch(self, selections: Sequence[SlotSelection | None]) -> BatchLoras | None:
        """The LoRAs of a batch in which `selections[i]` acts on image i; None if no image has any."""
        if not any(selections):
            return None
        if self._product_per_batch:
            parts = [self._select(slice(0, len(selections)), selections)]
        else:
            parts = [
                self._select(slice(image, image + 1), [selection])
                for image, selection in enumerate(selections)
                if selection
            ]
        kroneckers = tuple(
            (image, each.kroneckers) for image, each in enumerate(selections) if each and each.kroneckers
        )
        return BatchLoras(tuple(parts), self._product_per_batch, kroneckers)

    @contextmanager
    def apply(self, loras: BatchLoras | None) -> Iterator[None]:
        """Within the block, `loras` act on the batch that passes through the networks."""
        self.active = loras
        try:
            yield
        finally:
            self.active = None

    def _group(self, name: str) -> SlotGroup:
        if name not in self.groups:
            raise ValueError(f"there is no linear layer {name}")
        return self.groups[name]

    def _select(self, images: slice, selections: Sequence[SlotSelection | None]) -> SelectedSlots:
        """The slots of any of `selections`, in the order of the first one that has them."""
        slots = list(dict.fromkeys(slot for selection in selections if selection for slot in selection.scales))
        padded = _MIN_SELECTED_SLOTS
        while padded < len(slots):
            padded *= 2
        padding = [0.0] * (padded - len(slots))
        scales = [[selection.scales.get(slot, 0.0) if selection else 0.0 for slot in slots] for selection in selections]
        return SelectedSlots(
            images,
            device.from_host([*slots, *map(int, padding)], torch.int64, self.device),
            device.from_host([[*row, *padding] for row in scales], torch.float32, self.device),
            frozenset[str]().union(*(selection.layers for selection in selections if selection)),
        )

    def _add_to_output(self, name: str, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Forward hook: adds to the output in place."""
        if self.active is not None:
            add_loras(self.active, self.groups[name], [name], inputs[0], [output])


def _slot_bytes(linear: nn.Linear) -> int:
    """Without the constant, a single number."""
    return (linear.in_features + linear.out_features) * compute_dtype(linear).itemsize
