"""Stores the factors of a Kronecker product in LoRA slots and multiplies by them, without the full matrix."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from serve.lora.model_geometry import Shape
from serve.lora.weights import Kronecker


@dataclass(frozen=True, slots=True, eq=False)
class KroneckerSlots:
    """The slots of one linear layer that hold the factors of one LoRA, flat and one after the other."""

    slots: Tensor
    """[slots] on the device."""
    outer: Shape
    inner: Shape
    first_row: int
    """The first row of the product that belongs to the layer."""

    @classmethod
    def of(cls, kronecker: Kronecker, slots: Tensor) -> Self:
        return cls(slots, _shape(kronecker.outer), _shape(kronecker.inner), kronecker.first_row)

    def add_product(self, inputs: Tensor, output: Tensor, values: Tensor, scale: float) -> None:
        """Adds `scale * inputs @ kron(outer, inner).T` to `output` in place.

        `inputs` are [tokens, in], `output` is [tokens, out], and `values` are the numbers in the slots.
        """
        (outer_out, outer_in), (inner_out, inner_in) = self.outer, self.inner
        inner = values[: inner_out * inner_in].view(inner_out, inner_in)
        outer = values[inner.numel() : inner.numel() + outer_out * outer_in].view(outer_out, outer_in)
        by_inner = torch.mm(inputs.reshape(-1, inner_in), inner.t()).view(-1, outer_in, inner_out)
        product = torch.matmul(outer, by_inner).flatten(1)
        output.add_(product[:, self.first_row : self.first_row + output.shape[1]], alpha=scale)


def flat_values(kronecker: Kronecker) -> Tensor:
    """The factors as they are stored, in float32. The LoRA's own scale is multiplied into the outer one."""
    return torch.cat((kronecker.inner.float().flatten(), (kronecker.outer.float() * kronecker.scale).flatten()))


def split_rows(values: Tensor, slots: int, widths: Iterable[int]) -> list[Tensor]:
    """Zero-padded `values` as one matrix of `slots` rows for each of `widths`."""
    sizes = [slots * width for width in widths]
    padded = torch.nn.functional.pad(values, (0, sum(sizes) - values.numel()))
    return [part.view(slots, -1) for part in torch.split(padded, sizes)]


def _shape(matrix: Tensor) -> Shape:
    rows, columns = matrix.shape
    return rows, columns
