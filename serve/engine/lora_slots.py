"""Low-rank slots beside the linear layers of a network."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from serve.lora.weights import LowRank

_SMALLEST_RANK = 16
"""Matrix units work on tiles of this width, so fewer rows cost the same."""


@dataclass(frozen=True, slots=True, eq=False)
class SlotSelection:
    """Which rows an image draws with, and how much of each."""

    layers: frozenset[str]
    """The linears beside which some of the rows are not zero."""
    slots: Tensor
    """[rank] on the device. Few ranks occur: what is left over is filled with row 0, which is always zero."""
    gains: Tensor
    """[rank], float32."""


class LoraSlots:
    """The rows beside all linears of some networks. Belongs to the thread that runs them."""

    def __init__(self, networks: Mapping[str, nn.Module], size_bytes: int, max_rows: int | None = None) -> None:
        """As many rows as fit in `size_bytes`, up to `max_rows`.

        Linears are named by network and path, as in `clip.encoder.fc1`. The networks must have their final device,
        dtype and quantization, and keep what is attached to them here.
        """
        linears = {
            f"{network}.{path}": module
            for network, root in networks.items()
            for path, module in root.named_modules()
            if isinstance(module, nn.Linear)
        }
        self.slot_bytes = sum(map(_row_bytes, linears.values()))
        fitting = max(0, size_bytes // self.slot_bytes - 1) if linears else 0
        self.count = fitting if max_rows is None else min(fitting, max_rows)
        """Those that can be written to are 1 to `rows`."""
        self._device = next((linear.weight.device for linear in linears.values()), torch.device("cpu"))
        self._running = _Running()
        self._layers = {name: _Layer(linear, name, self.count + 1, self._running) for name, linear in linears.items()}

    def write(self, rows: Sequence[int], matrices: Mapping[str, LowRank]) -> None:
        """Fills `rows` with matrices of at most as many ranks, by linear; beside all other linears they become zero.

        Raises ValueError before anything is written, for a linear that is not here or has another shape.
        """
        for name, matrix in matrices.items():
            if name not in self._layers:
                raise ValueError(f"there is no linear {name}")
            self._layers[name].check(matrix, len(rows))
        index = torch.tensor(rows, device=self._device)
        for name, layer in self._layers.items():
            layer.write(index, matrices.get(name))

    def select(self, gains: Mapping[int, float], layers: frozenset[str]) -> SlotSelection:
        """The choice of rows with these gains, all zero but beside `layers`."""
        rank = _SMALLEST_RANK
        while rank < len(gains):
            rank *= 2
        filling = [0] * (rank - len(gains))
        return SlotSelection(
            layers,
            torch.tensor([*gains, *filling], device=self._device),
            torch.tensor([*gains.values(), *filling], device=self._device, dtype=torch.float32),
        )

    @contextmanager
    def apply(self, blends: Sequence[SlotSelection | None]) -> Iterator[None]:
        """Within it, image i of a batch passes through the networks with `blends[i]`."""
        if any(blends):
            self._running.blends = tuple(map(self._own, blends))
        try:
            yield
        finally:
            self._running.blends = ()

    def _own(self, blend: SlotSelection | None) -> SlotSelection:
        """In tensors of its own, also for none: a compiled network is tied to which of its inputs are the same."""
        blend = blend or self.select({}, frozenset())
        return replace(blend, slots=blend.slots.clone(), gains=blend.gains.clone())


@dataclass(slots=True)
class _Running:
    """What is on its way through the networks."""

    blends: tuple[SlotSelection, ...] = ()
    """One an image; none if no image has rows."""


class _Layer:
    """The rows beside one linear."""

    def __init__(self, linear: nn.Linear, name: str, rows: int, running: _Running) -> None:
        self._name = name
        self._running = running
        device, dtype = linear.weight.device, linear.weight.dtype
        self._down = torch.zeros(rows, linear.in_features, device=device, dtype=dtype)
        self._up = torch.zeros(rows, linear.out_features, device=device, dtype=dtype)
        linear.register_forward_hook(self._add)

    def check(self, matrix: LowRank, rows: int) -> None:
        wanted = (matrix.rank, self._down.shape[1]), (self._up.shape[1], matrix.rank)
        if (matrix.down.shape, matrix.up.shape) != wanted or matrix.rank > rows:
            raise ValueError(f"the matrices for {self._name} are {matrix.down.shape} and {matrix.up.shape}")

    def write(self, rows: Tensor, matrix: LowRank | None) -> None:
        """The matrix' own scale goes into `up`, as exactly as its dtype allows."""
        self._down.index_fill_(0, rows, 0)
        self._up.index_fill_(0, rows, 0)
        if matrix is not None:
            rows = rows[: matrix.rank]
            up = matrix.up.to(self._up.device, torch.float32) * matrix.scale
            self._down.index_copy_(0, rows, matrix.down.to(self._down))
            self._up.index_copy_(0, rows, up.t().to(self._up))

    def _add(self, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """What a linear gave gets its addition in place, image by image: the bits of one do not depend on others."""
        for image, blend in enumerate(self._running.blends):
            # A compiled network serves every choice of layers, so it adds beside all of them, zeros if need be.
            if torch.compiler.is_compiling() or self._name in blend.layers:
                tokens = inputs[0][image : image + 1].flatten(0, -2)
                sums = output[image : image + 1].view(-1, output.shape[-1])
                inner = torch.mm(tokens, self._down.index_select(0, blend.slots).t()).mul_(blend.gains)
                sums.addmm_(inner, self._up.index_select(0, blend.slots))


def _row_bytes(linear: nn.Linear) -> int:
    return (linear.in_features + linear.out_features) * linear.weight.dtype.itemsize
