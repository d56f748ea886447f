"""Adds LoRAs to the outputs of linear layers through preallocated low-rank slots, without changing weights.

Every linear layer has the same number of slots, each a pair of vectors (down, up). For an image that selects slots,
each adds `scale * up * (down . input)` to the layer's output. The weights are not read, so they may have any dtype or
be quantized. Slots are allocated once and a selection is a tensor, so a compiled network is not recompiled for other
LoRAs.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from serve.lora.weights import LowRank

_MIN_SELECTED_SLOTS = 16
"""Selections are padded to 16, 32, 64, ... slots: matrix units work on tiles of 16, and few shapes occur."""


@dataclass(frozen=True, slots=True, eq=False)
class SlotSelection:
    """The slots that act on an image, each with its scale."""

    layers: frozenset[str]
    """The linear layers in which some of the slots are not zero."""
    slots: Tensor
    """[selected] on the device, padded with slot 0, which is always zero."""
    scales: Tensor
    """[selected], float32."""


class LoraSlots:
    """The slots of all linear layers of some networks. Belongs to the thread that runs the networks."""

    def __init__(self, networks: Mapping[str, nn.Module], size_bytes: int, max_slots: int | None = None) -> None:
        """Allocates as many slots as fit in `size_bytes`, at most `max_slots`, and registers forward hooks.

        Layers are named by network and path, as in `clip.encoder.fc1`. The networks must have their final device,
        dtype and quantization.
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
        self._device = next((linear.weight.device for linear in linears.values()), torch.device("cpu"))
        self._active = _ActiveSelections()
        self._layers = {
            name: _LayerSlots(linear, name, self.count + 1, self._active) for name, linear in linears.items()
        }

    def write(self, slots: Sequence[int], matrices: Mapping[str, LowRank]) -> None:
        """Writes `matrices`, by layer and of rank at most `len(slots)`, to `slots`. Other layers get zeros.

        Raises ValueError, before anything is written, for an unknown layer or a wrong shape.
        """
        for name, matrix in matrices.items():
            if name not in self._layers:
                raise ValueError(f"there is no linear layer {name}")
            self._layers[name].check(matrix, len(slots))
        index = torch.tensor(slots, device=self._device)
        for name, layer in self._layers.items():
            layer.write(index, matrices.get(name))

    def select(self, scales: Mapping[int, float], layers: frozenset[str]) -> SlotSelection:
        """Selects slots with these scales. `layers` are the layers in which any of the slots is not zero."""
        rank = _MIN_SELECTED_SLOTS
        while rank < len(scales):
            rank *= 2
        padding = [0] * (rank - len(scales))
        return SlotSelection(
            layers,
            torch.tensor([*scales, *padding], device=self._device),
            torch.tensor([*scales.values(), *padding], device=self._device, dtype=torch.float32),
        )

    @contextmanager
    def apply(self, selections: Sequence[SlotSelection | None]) -> Iterator[None]:
        """Within the block, `selections[i]` acts on image i of a batch that passes through the networks."""
        if any(selections):
            self._active.selections = tuple(map(self._copy, selections))
        try:
            yield
        finally:
            self._active.selections = ()

    def _copy(self, selection: SlotSelection | None) -> SlotSelection:
        """A copy in tensors of its own, also of None: a compiled network depends on the identity of inputs."""
        selection = selection or self.select({}, frozenset())
        return replace(selection, slots=selection.slots.clone(), scales=selection.scales.clone())


@dataclass(slots=True)
class _ActiveSelections:
    """Shared by all layers."""

    selections: tuple[SlotSelection, ...] = ()
    """One per image of the batch; empty if no image has any."""


class _LayerSlots:
    """The slots of one linear layer."""

    def __init__(self, linear: nn.Linear, name: str, count: int, active: _ActiveSelections) -> None:
        self._name = name
        self._active = active
        device, dtype = linear.weight.device, linear.weight.dtype
        self._down = torch.zeros(count, linear.in_features, device=device, dtype=dtype)
        self._up = torch.zeros(count, linear.out_features, device=device, dtype=dtype)
        linear.register_forward_hook(self._add)

    def check(self, matrix: LowRank, slots: int) -> None:
        expected = (matrix.rank, self._down.shape[1]), (self._up.shape[1], matrix.rank)
        if (matrix.down.shape, matrix.up.shape) != expected or matrix.rank > slots:
            raise ValueError(f"the matrices for {self._name} are {matrix.down.shape} and {matrix.up.shape}")

    def write(self, slots: Tensor, matrix: LowRank | None) -> None:
        """Fills slots. The matrix' own scale is multiplied into `up`, in float32."""
        self._down.index_fill_(0, slots, 0)
        self._up.index_fill_(0, slots, 0)
        if matrix is not None:
            slots = slots[: matrix.rank]
            up = matrix.up.to(self._up.device, torch.float32) * matrix.scale
            self._down.index_copy_(0, slots, matrix.down.to(self._down))
            self._up.index_copy_(0, slots, up.t().to(self._up))

    def _add(self, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Forward hook: adds to the output in place, image by image, so that images are independent."""
        for image, selection in enumerate(self._active.selections):
            # A compiled network must serve every choice of layers, so it adds to all of them, zeros included.
            if torch.compiler.is_compiling() or self._name in selection.layers:
                tokens = inputs[0][image : image + 1].flatten(0, -2)
                flat_output = output[image : image + 1].view(-1, output.shape[-1])
                inner = torch.mm(tokens, self._down.index_select(0, selection.slots).t()).mul_(selection.scales)
                flat_output.addmm_(inner, self._up.index_select(0, selection.slots))


def _slot_bytes(linear: nn.Linear) -> int:
    return (linear.in_features + linear.out_features) * linear.weight.dtype.itemsize
