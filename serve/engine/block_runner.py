"""Runs the blocks of FLUX's transformer with the LoRAs of a batch, one by one or compiled."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from torch import Tensor, nn

from serve.engine.attention import Attention
from serve.engine.batch_invariance import batch_invariant
from serve.engine.compilation import Backend, Compiled
from serve.engine.flux_blocks import Rotary, double_block, single_block
from serve.engine.lora_layers import LoraSlots
from serve.engine.lora_products import BatchLoras, add_loras, add_low_rank
from serve.engine.lora_storage import layer_columns


class BlockRunner(Protocol):
    """See `double_block` and `single_block`. `loras` are those of the batch."""

    def double(
        self, block: Any, image: Tensor, text: Tensor, vectors: Tensor, rotary: Rotary, loras: BatchLoras | None
    ) -> tuple[Tensor, Tensor]: ...

    def single(
        self, block: Any, tokens: Tensor, vectors: Tensor, rotary: Rotary, loras: BatchLoras | None
    ) -> Tensor: ...


class EagerBlocks:
    """Runs blocks without compilation."""

    def __init__(self, transformer: FluxTransformer2DModel, lora_slots: LoraSlots, attention: Attention) -> None:
        self._attention = attention
        self._groups = lora_slots.groups
        self._names = {id(layer): f"transformer.{path}" for path, layer in transformer.named_modules()}

    def double(
        self, block: Any, image: Tensor, text: Tensor, vectors: Tensor, rotary: Rotary, loras: BatchLoras | None
    ) -> tuple[Tensor, Tensor]:
        linears = partial(self._linears, loras)
        with batch_invariant(image.device, len(image)):
            return double_block(block, image, text, vectors, rotary, self._attention, linears)

    def single(self, block: Any, tokens: Tensor, vectors: Tensor, rotary: Rotary, loras: BatchLoras | None) -> Tensor:
        linears = partial(self._linears, loras)
        with batch_invariant(tokens.device, len(tokens)):
            return single_block(block, tokens, vectors, rotary, self._attention, linears)

    def _linears(self, loras: BatchLoras | None, inputs: Tensor, layers: Sequence[nn.Linear]) -> list[Tensor]:
        # `forward` skips the hooks of the layer, so that LoRAs are added only here.
        outputs = [layer.forward(inputs) for layer in layers]
        if loras is not None:
            names = [self._names[id(layer)] for layer in layers]
            add_loras(loras, self._groups[names[0]], names, inputs, outputs)
        return outputs


class LoraTensors(NamedTuple):
    """The LoRAs of a batch in one block, as arguments of a compiled function. See `add_low_rank`."""

    rows: Tensor
    constants: Tensor
    slots: Tensor
    scales: Tensor


class CompiledBlocks:
    """Runs blocks with `torch.compile`: one function for all double blocks, and one for all single ones.

    Each is compiled for a single image and for several, without and with LoRAs. Sizes, LoRAs, their scales and the
    number of slots are dynamic. LoRAs with Kronecker products, whose shapes vary, run uncompiled; so do LoRAs with a
    product for each image.
    """

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        lora_slots: LoraSlots,
        attention: Attention,
        backend: Backend = "inductor",
    ) -> None:
        self._eager = EagerBlocks(transformer, lora_slots, attention)
        self._attention = attention
        self._groups = {
            id(block): lora_slots.groups[f"transformer.{path}.{_first_linear(block)}"]
            for path, block in transformer.named_modules()
            if isinstance(block, FluxTransformerBlock | FluxSingleTransformerBlock) and lora_slots.count
        }
        self._double = Compiled("the double blocks", _double_block, backend)
        self._single = Compiled("the single blocks", _single_block, backend)

    def double(
        self, block: Any, image: Tensor, text: Tensor, vectors: Tensor, rotary: Rotary, loras: BatchLoras | None
    ) -> tuple[Tensor, Tensor]:
        if not _can_compile(loras):
            return self._eager.double(block, image, text, vectors, rotary, loras)
        tensors = self._tensors(block, loras)
        output: tuple[Tensor, Tensor] = self._double(block, image, text, vectors, rotary, self._attention, tensors)
        return output

    def single(self, block: Any, tokens: Tensor, vectors: Tensor, rotary: Rotary, loras: BatchLoras | None) -> Tensor:
        if not _can_compile(loras):
            return self._eager.single(block, tokens, vectors, rotary, loras)
        output: Tensor = self._single(block, tokens, vectors, rotary, self._attention, self._tensors(block, loras))
        return output

    def _tensors(self, block: Any, loras: BatchLoras | None) -> LoraTensors | None:
        if loras is None:
            return None
        group, (part,) = self._groups[id(block)], loras.parts
        return LoraTensors(group.rows, group.constants, part.slots, part.scales)


def _can_compile(loras: BatchLoras | None) -> bool:
    """Whether all batches with such LoRAs have the same operations."""
    return loras is None or (loras.shared_products and not loras.kroneckers)


def _double_block(
    block: FluxTransformerBlock,
    image: Tensor,
    text: Tensor,
    vectors: Tensor,
    rotary: Rotary,
    attention: Attention,
    loras: LoraTensors | None,
) -> tuple[Tensor, Tensor]:
    return double_block(block, image, text, vectors, rotary, attention, partial(_linears, block, loras))


def _single_block(
    block: FluxSingleTransformerBlock,
    tokens: Tensor,
    vectors: Tensor,
    rotary: Rotary,
    attention: Attention,
    loras: LoraTensors | None,
) -> Tensor:
    return single_block(block, tokens, vectors, rotary, attention, partial(_linears, block, loras))


def _linears(block: nn.Module, loras: LoraTensors | None, inputs: Tensor, layers: Sequence[nn.Linear]) -> list[Tensor]:
    """Adds the LoRAs to all layers, zeros included, so that the function is the same for every choice of layers."""
    outputs = [layer.forward(inputs) for layer in layers]
    if loras is not None:
        linears = _linear_layers(block)
        columns = layer_columns(linears)
        adapted = [
            (columns[index], output)
            for layer, output in zip(layers, outputs, strict=True)
            for index, other in enumerate(linears)
            if other is layer
        ]
        add_low_rank(*loras, adapted, inputs)
    return outputs


def _linear_layers(block: nn.Module) -> list[nn.Linear]:
    """In the order of the columns of the block's slots."""
    return [layer for layer in block.modules() if isinstance(layer, nn.Linear)]


def _first_linear(block: nn.Module) -> str:
    return next(str(path) for path, layer in block.named_modules() if isinstance(layer, nn.Linear))
