"""Adds LoRAs to the outputs of linear layers through preallocated low-rank slots, without changing weights.

Every linear layer has the same number of slots, each a pair of vectors (down, up). For an image that selects slots,
each adds `scale * up * (down . input)` to the layer's output; one with a bias adds `scale * up`. The weights are not
read, so they may have any dtype or be quantized. Slots are allocated once and a selection is a tensor, so a compiled
network is not recompiled for other LoRAs. Slots can instead hold the factors of a Kronecker product. Their shapes
differ, so a compiled network is recompiled for them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from serve.engine.float8_linear import compute_dtype
from serve.engine.kronecker import KroneckerSlots, flat_values, split_rows
from serve.lora.weights import Kronecker, LowRank

ScaledKroneckers = Mapping[str, Sequence[tuple[KroneckerSlots, float]]]
"""The Kronecker products of each layer with their scales."""
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
    kroneckers: ScaledKroneckers = field(default_factory=dict)


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
        """Writes `matrices`, by layer and for at most `len(slots)` slots, to `slots`. Other layers get zeros.

        Raises ValueError, before anything is written, for an unknown layer or a wrong shape.
        """
        for name, matrix in matrices.items():
            self._layer(name).check(matrix, len(slots))
        index = torch.tensor(slots, device=self._device, dtype=torch.int64)
        for name, layer in self._layers.items():
            layer.write(index, matrices.get(name))

    def write_kroneckers(self, slots: Sequence[int], kroneckers: Mapping[str, Kronecker]) -> dict[str, KroneckerSlots]:
        """Writes the factors of Kronecker products, by layer, to `slots`, which must not be selected as others are.

        Returns the slots of each layer. Raises ValueError as `write` does.
        """
        for name, kronecker in kroneckers.items():
            self._layer(name).check_kronecker(kronecker, len(slots))
        index = torch.tensor(slots, device=self._device, dtype=torch.int64)
        return {
            name: self._layers[name].write_kronecker(index[: kronecker.slots], kronecker)
            for name, kronecker in kroneckers.items()
        }

    def _layer(self, name: str) -> "_LayerSlots":
        if name not in self._layers:
            raise ValueError(f"there is no linear layer {name}")
        return self._layers[name]

    def select(
        self, scales: Mapping[int, float], layers: frozenset[str], kroneckers: ScaledKroneckers | None = None
    ) -> SlotSelection:
        """Selects slots with these scales. `layers` are the layers in which any of the slots is not zero."""
        rank = _MIN_SELECTED_SLOTS
        while rank < len(scales):
            rank *= 2
        padding = [0] * (rank - len(scales))
        return SlotSelection(
            layers,
            torch.tensor([*scales, *padding], device=self._device),
            torch.tensor([*scales.values(), *padding], device=self._device, dtype=torch.float32),
            kroneckers or {},
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
        device, dtype = linear.weight.device, compute_dtype(linear)
        self._down = torch.zeros(count, linear.in_features, device=device, dtype=dtype)
        self._up = torch.zeros(count, linear.out_features, device=device, dtype=dtype)
        self._constant = torch.zeros(count, device=device, dtype=dtype)
        """1 for slots with a bias, which do not depend on the input."""
        linear.register_forward_hook(self._add)

    def check(self, matrix: LowRank, slots: int) -> None:
        expected = (matrix.rank, self._down.shape[1]), (self._up.shape[1], matrix.rank)
        if (matrix.down.shape, matrix.up.shape) != expected or matrix.slots > slots:
            raise ValueError(f"the matrices for {self._name} are {matrix.down.shape} and {matrix.up.shape}")
        if matrix.bias is not None and matrix.bias.shape != self._up.shape[1:]:
            raise ValueError(f"the bias for {self._name} is {matrix.bias.shape}")

    def check_kronecker(self, kronecker: Kronecker, slots: int) -> None:
        rows = kronecker.outer.shape[0] * kronecker.inner.shape[0]
        fits = kronecker.first_row + kronecker.outputs <= rows and kronecker.slots <= slots
        if (kronecker.inputs, kronecker.outputs) != (self._down.shape[1], self._up.shape[1]) or not fits:
            raise ValueError(f"the factors for {self._name} are {kronecker.outer.shape} and {kronecker.inner.shape}")

    def write(self, slots: Tensor, matrix: LowRank | None) -> None:
        """Fills slots. The matrix' own scale is multiplied into `up`, in float32."""
        for stored in (self._down, self._up, self._constant):
            stored.index_fill_(0, slots, 0)
        if matrix is not None:
            matrix_slots, bias_slot = slots[: matrix.rank], slots[matrix.rank : matrix.slots]
            up = matrix.up.to(self._up.device, torch.float32) * matrix.scale
            self._down.index_copy_(0, matrix_slots, matrix.down.to(self._down))
            self._up.index_copy_(0, matrix_slots, up.t().to(self._up))
            if matrix.bias is not None:
                self._up.index_copy_(0, bias_slot, matrix.bias[None].to(self._up))
                self._constant.index_fill_(0, bias_slot, 1)

    def write_kronecker(self, slots: Tensor, kronecker: Kronecker) -> KroneckerSlots:
        widths = (self._down.shape[1], self._up.shape[1])
        down, up = split_rows(flat_values(kronecker), len(slots), widths)
        self._down.index_copy_(0, slots, down.to(self._down))
        self._up.index_copy_(0, slots, up.to(self._up))
        return KroneckerSlots.of(kronecker, slots)

    def _add(self, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Forward hook: adds to the output in place, image by image, so that images are independent."""
        for image, selection in enumerate(self._active.selections):
            # A compiled network must serve every choice of layers, so it adds to all of them, zeros included.
            adds_low_rank = torch.compiler.is_compiling() or self._name in selection.layers
            if not adds_low_rank and self._name not in selection.kroneckers:
                continue
            tokens = inputs[0][image : image + 1].flatten(0, -2)
            flat_output = output[image : image + 1].view(-1, output.shape[-1])
            if adds_low_rank:
                inner = torch.mm(tokens, self._down.index_select(0, selection.slots).t())
                inner.add_(self._constant.index_select(0, selection.slots)).mul_(selection.scales)
                flat_output.addmm_(inner, self._up.index_select(0, selection.slots))
            for kronecker, scale in selection.kroneckers.get(self._name, ()):
                kronecker.add_product(tokens, flat_output, self._stored_values(kronecker.slots), scale)

    def _stored_values(self, slots: Tensor) -> Tensor:
        return torch.cat([rows.index_select(0, slots).flatten() for rows in (self._down, self._up)])


def _slot_bytes(linear: nn.Linear) -> int:
    """Without the constant, a single number."""
    return (linear.in_features + linear.out_features) * compute_dtype(linear).itemsize
