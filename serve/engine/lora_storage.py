"""The device memory of LoRA slots: one tensor for each group of linear layers, such as a transformer block."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from serve.engine.float8_linear import compute_dtype
from serve.engine.kronecker import KroneckerSlots, flat_values, split_rows
from serve.lora.weights import Kronecker, LowRank

_GROUP = re.compile(r".*?\.\d+(?=\.|$)")
"""The part of a layer's name that names its block, such as `transformer.transformer_blocks.3`."""
_ALIGNMENT = 16
Allocate = Callable[[int], Tensor]
"""Returns memory of the host, with any content: uint8, at least as many bytes as requested."""


def pageable_memory(size_bytes: int) -> Tensor:
    return torch.empty(size_bytes, dtype=torch.uint8)


class LayerColumns(NamedTuple):
    """Where a group's tensors have the vectors of one layer."""

    number: int
    """Of the layer within its group."""
    down: slice
    up: slice


def layer_columns(layers: Iterable[nn.Linear]) -> list[LayerColumns]:
    """The columns of consecutive layers: first down, then up of each."""
    columns, start = [], 0
    for number, layer in enumerate(layers):
        middle, end = start + layer.in_features, start + layer.in_features + layer.out_features
        columns.append(LayerColumns(number, slice(start, middle), slice(middle, end)))
        start = end
    return columns


class SlotGroup:
    """The slots of some linear layers of one network."""

    def __init__(self, layers: Mapping[str, nn.Linear], count: int) -> None:
        """`layers` are of one device and dtype."""
        first = next(iter(layers.values()))
        width = sum(layer.in_features + layer.out_features for layer in layers.values())
        self.columns = dict(zip(layers, layer_columns(layers.values()), strict=True))
        """By the layers' names."""
        self.rows = torch.zeros(count, width, device=first.weight.device, dtype=compute_dtype(first))
        """Down and up vectors of all layers: [slots, width]."""
        self.constants = torch.zeros(count, len(layers), device=self.rows.device, dtype=self.rows.dtype)
        """1 for slots with a bias, which do not depend on the input: [slots, layers]."""

    def check(self, name: str, matrix: LowRank, slots: int) -> None:
        """Raises ValueError for a matrix that does not fit the layer, or needs more slots."""
        inputs, outputs = self._widths(name)
        expected = (matrix.rank, inputs), (outputs, matrix.rank)
        if (matrix.down.shape, matrix.up.shape) != expected or matrix.slots > slots:
            raise ValueError(f"the matrices for {name} are {matrix.down.shape} and {matrix.up.shape}")
        if matrix.bias is not None and matrix.bias.shape != (outputs,):
            raise ValueError(f"the bias for {name} is {matrix.bias.shape}")

    def check_kronecker(self, name: str, kronecker: Kronecker, slots: int) -> None:
        """Raises ValueError for factors that do not fit the layer, or need more slots."""
        rows = kronecker.outer.shape[0] * kronecker.inner.shape[0]
        fits = kronecker.first_row + kronecker.outputs <= rows and kronecker.slots <= slots
        if (kronecker.inputs, kronecker.outputs) != self._widths(name) or not fits:
            raise ValueError(f"the factors for {name} are {kronecker.outer.shape} and {kronecker.inner.shape}")

    def stage(self, rows: Tensor, constants: Tensor, matrices: Mapping[str, LowRank]) -> None:
        """Writes matrices to zeroed rows of a tensor on the CPU. A matrix' own scale is multiplied into `up`."""
        for name, matrix in matrices.items():
            number, down, up = self.columns[name]
            rows[: matrix.rank, down] = matrix.down
            rows[: matrix.rank, up] = (matrix.up.float() * matrix.scale).t()
            if matrix.bias is not None:
                rows[matrix.rank, up] = matrix.bias
                constants[matrix.rank, number] = 1
        # An infinite number would become NaN in the images of a batch that do not use the LoRA: zero times infinity.
        rows.clamp_(torch.finfo(rows.dtype).min, torch.finfo(rows.dtype).max)

    def clear(self, slots: Tensor) -> None:
        self.rows.index_fill_(0, slots, 0)
        self.constants.index_fill_(0, slots, 0)

    def write_kronecker(self, name: str, slots: Tensor, kronecker: Kronecker) -> KroneckerSlots:
        _, down, up = self.columns[name]
        parts = split_rows(flat_values(kronecker), len(slots), self._widths(name))
        for columns, part in zip((down, up), parts, strict=True):
            self.rows[:, columns].index_copy_(0, slots, part.to(self.rows))
        return KroneckerSlots.of(kronecker, slots)

    def kronecker_values(self, name: str, slots: Tensor) -> Tensor:
        """The numbers in the slots of a layer, flat."""
        _, down, up = self.columns[name]
        return torch.cat([self.rows[:, columns].index_select(0, slots).flatten() for columns in (down, up)])

    def _widths(self, name: str) -> tuple[int, int]:
        """Inputs and outputs of a layer."""
        _, down, up = self.columns[name]
        return down.stop - down.start, up.stop - up.start


@dataclass(frozen=True, slots=True, eq=False)
class StagedLora:
    """The rows of a LoRA in the layout of the slots, on the CPU."""

    rows: Mapping[torch.dtype, Tensor]
    """[slots, width of the groups of this dtype in `groups`]."""
    constants: Mapping[torch.dtype, Tensor]
    groups: Sequence[SlotGroup]
    """Those whose layers the LoRA adapts. All others get zeros."""


def stage(
    groups: Mapping[str, SlotGroup], slots: int, matrices: Mapping[str, LowRank], allocate: Allocate
) -> StagedLora:
    """Converts matrices, by layer. `groups` are those of the layers. May run on any thread."""
    by_group = defaultdict[SlotGroup, dict[str, LowRank]](dict)
    for name, matrix in matrices.items():
        by_group[groups[name]][name] = matrix
    rows = _zeros(((group.rows.dtype, group.rows.shape[1]) for group in by_group), slots, allocate)
    constants = _zeros(
        ((group.constants.dtype, group.constants.shape[1]) for group in by_group), slots, pageable_memory
    )
    staged = StagedLora(rows, constants, list(by_group))
    for group, group_rows, group_constants in iterate_groups(staged, rows, constants):
        group.stage(group_rows, group_constants, by_group[group])
    return staged


def copy_to_slots(staged: StagedLora, slots: Tensor) -> None:
    """Copies a staged LoRA to slots of its groups: one copy to the device for each dtype."""
    device = slots.device
    rows, constants = (
        {dtype: tensor.to(device, non_blocking=True) for dtype, tensor in tensors.items()}
        for tensors in (staged.rows, staged.constants)
    )
    for group, group_rows, group_constants in iterate_groups(staged, rows, constants):
        group.rows.index_copy_(0, slots, group_rows)
        group.constants.index_copy_(0, slots, group_constants)


def iterate_groups(
    staged: StagedLora, rows: Mapping[torch.dtype, Tensor], constants: Mapping[torch.dtype, Tensor]
) -> Iterator[tuple[SlotGroup, Tensor, Tensor]]:
    """Each group with its columns of `rows` and `constants`."""
    ends = defaultdict[torch.dtype, list[int]](lambda: [0, 0])
    for group in staged.groups:
        dtype = group.rows.dtype
        (row_start, constant_start), width, layers = ends[dtype], group.rows.shape[1], group.constants.shape[1]
        ends[dtype] = [row_start + width, constant_start + layers]
        yield (
            group,
            rows[dtype][:, row_start : row_start + width],
            constants[dtype][:, constant_start : constant_start + layers],
        )


def _zeros(widths: Iterable[tuple[torch.dtype, int]], slots: int, allocate: Allocate) -> dict[torch.dtype, Tensor]:
    """Zeros for all columns of a dtype, [slots, columns], in one block of memory."""
    columns = defaultdict[torch.dtype, int](int)
    for dtype, width in widths:
        columns[dtype] += width
    sizes = [-(-slots * width * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT for dtype, width in columns.items()]
    memory = allocate(sum(sizes))[: sum(sizes)].zero_()
    return {
        dtype: part.view(dtype)[: slots * width].view(slots, width)
        for part, (dtype, width) in zip(torch.split(memory, sizes), columns.items(), strict=True)
    }


def split_into_groups(layers: Mapping[str, nn.Linear], count: int) -> dict[str, SlotGroup]:
    """A group for each block of layers, and for each layer outside blocks; by the names of the layers."""
    names = defaultdict[str, list[str]](list)
    for name in layers:
        block = _GROUP.match(name)
        names[block[0] if block else name].append(name)
    groups = {}
    for members in names.values():
        group = SlotGroup({name: layers[name] for name in members}, count)
        groups.update(dict.fromkeys(members, group))
    return groups


class GatheredSlots:
    """The slots that a batch selects, gathered once for all of its passes.

    They stay at the same addresses, so CUDA graphs can read them.
    """

    def __init__(self, groups: Iterable[SlotGroup], max_slots: int) -> None:
        self._max_slots = max_slots
        self._buffers = {
            group: (
                group.rows.new_zeros(max_slots, group.rows.shape[1]),
                group.constants.new_zeros(max_slots, group.constants.shape[1]),
            )
            for group in groups
        }
        self._gathered: tuple[Tensor, int] | None = None

    def gather(self, slots: Tensor, version: int) -> None:
        """Gathers `slots`, [selected], unless the same ones of this version are gathered or they are too many.

        The version changes when slots are written.
        """
        if len(slots) > self._max_slots:
            return
        if self._gathered is not None and self._gathered[0] is slots and self._gathered[1] == version:
            return
        self._gathered = None
        for group, (rows, constants) in self._buffers.items():
            torch.index_select(group.rows, 0, slots, out=_first_rows(rows, len(slots)))
            torch.index_select(group.constants, 0, slots, out=_first_rows(constants, len(slots)))
        self._gathered = slots, version

    def select(self, group: SlotGroup, slots: Tensor) -> tuple[Tensor, Tensor]:
        """The rows and constants of `slots` in a group. `gather` must have been called with them."""
        if len(slots) > self._max_slots:
            return group.rows.index_select(0, slots), group.constants.index_select(0, slots)
        rows, constants = self._buffers[group]
        return _first_rows(rows, len(slots)), _first_rows(constants, len(slots))


def _first_rows(matrix: Tensor, count: int) -> Tensor:
    """As a slice, but not a view in the sense of autograd, for which functions are compiled apart."""
    width = matrix.shape[1]
    return matrix.new_empty(0).set_(matrix.untyped_storage(), 0, (count, width), (width, 1))
