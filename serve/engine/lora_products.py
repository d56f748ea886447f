"""The products with LoRA slots that are added to the outputs of linear layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from serve.engine.kronecker import KroneckerSlots
from serve.engine.lora_storage import LayerColumns, SlotGroup

ImageKroneckers = tuple[int, Mapping[str, Sequence[tuple[KroneckerSlots, float]]]]
"""An image of the batch, and the Kronecker products of each layer with their scales."""


@dataclass(frozen=True, slots=True, eq=False)
class SelectedSlots:
    """Slots that act on some consecutive images of a batch, in one product."""

    images: slice
    slots: Tensor
    """[selected] on the device, padded with slot 0, which is always zero."""
    scales: Tensor
    """[images, selected], float32. Zero where an image does not select the slot."""
    layers: frozenset[str]
    """The linear layers in which some of the slots are not zero."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchLoras:
    """The LoRAs of the images of a batch."""

    parts: tuple[SelectedSlots, ...]
    shared_products: bool
    """Layers with the same inputs share a product. It may round differently than one product for each layer."""
    kroneckers: tuple[ImageKroneckers, ...] = ()


def add_loras(
    loras: BatchLoras, group: SlotGroup, names: Sequence[str], inputs: Tensor, outputs: Sequence[Tensor]
) -> None:
    """Adds to the outputs of layers of one group that have the same inputs, in place.

    `inputs` are [images, ..., in], and `outputs[i]` are those of layer `names[i]`, [images, ..., out].
    """
    for part in loras.parts:
        adapted = [
            (group.columns[name], output[part.images])
            for name, output in zip(names, outputs, strict=True)
            if name in part.layers
        ]
        for layers in [adapted] if loras.shared_products and adapted else ([each] for each in adapted):
            add_low_rank(group.rows, group.constants, part.slots, part.scales, layers, inputs[part.images])
    for image, kroneckers in loras.kroneckers:
        for name, output in zip(names, outputs, strict=True):
            for kronecker, scale in kroneckers.get(name, ()):
                tokens, flat_output = inputs[image].flatten(0, -2), output[image].view(-1, output.shape[-1])
                kronecker.add_product(tokens, flat_output, group.kronecker_values(name, kronecker.slots), scale)


def add_low_rank(
    rows: Tensor,
    constants: Tensor,
    slots: Tensor,
    scales: Tensor,
    layers: Sequence[tuple[LayerColumns, Tensor]],
    inputs: Tensor,
) -> None:
    """Adds the product with selected slots to the outputs of layers that have the same inputs, in place.

    `rows` and `constants` are those of a `SlotGroup`, `slots` are [selected], and `scales` [images, selected]. Each of
    `layers` has its columns and its outputs. All share one product with their down vectors.
    """
    down = [rows[:, columns.down].index_select(0, slots) for columns, _ in layers]
    constant = [constants[:, columns.number].index_select(0, slots) for columns, _ in layers]
    for (columns, output), own in zip(layers, _multiply_down(down, constant, scales, inputs), strict=True):
        output.view(-1, output.shape[-1]).addmm_(own, rows[:, columns.up].index_select(0, slots))


def sum_low_rank(
    rows: Tensor, constants: Tensor, scales: Tensor, layers: Sequence[tuple[LayerColumns, Tensor]], inputs: Tensor
) -> list[Tensor]:
    """As `add_low_rank` with slots that are gathered already, but returns new outputs.

    A compiler can fuse these sums with what follows. They are sums in float32, because it would turn others back into
    a product that adds in place, which reads and writes every output twice.
    """
    down = [rows[:, columns.down] for columns, _ in layers]
    constant = [constants[:, columns.number] for columns, _ in layers]
    return [
        (output.float() + torch.mm(own, rows[:, columns.up]).view(output.shape).float()).to(output.dtype)
        for (columns, output), own in zip(layers, _multiply_down(down, constant, scales, inputs), strict=True)
    ]


def _multiply_down(
    down: Sequence[Tensor], constant: Sequence[Tensor], scales: Tensor, inputs: Tensor
) -> tuple[Tensor, ...]:
    """The scaled product with the down vectors of each layer, [tokens of all images, selected], in one product."""
    images, selected = scales.shape
    inner = torch.mm(inputs.flatten(0, -2), torch.cat(list(down)).t()).add_(torch.cat(list(constant)))
    # Numbers that overflow in the LoRA of one image must not become NaN in another, so zero scales are not multiplied.
    by_image = inner.view(images, -1, len(down), selected)
    by_image.mul_(scales[:, None, None]).masked_fill_(scales[:, None, None] == 0, 0)
    return torch.split(inner, selected, dim=1)
