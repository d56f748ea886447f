"""Runs the blocks of FLUX's transformer with the LoRAs of a batch, one by one or compiled."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from torch import Tensor, nn

from serve.engine.attention import Attention
from serve.engine.batch_invariance import batch_invariant
from serve.engine.compilation import WHOLE_ROWS, Backend, Compiled
from serve.engine.float8_linear import multiply
from serve.engine.flux_blocks import Linears, Rotary, double_block, single_block
from serve.engine.lora_layers import LoraSlots
from serve.engine.lora_products import BatchLoras, add_loras, sum_low_rank
from serve.engine.lora_storage import GatheredSlots, layer_columns

MAX_GATHERED = 64
"""Slots of a batch that are gathered once; more of them are gathered in every pass. 64 take 0.7 GB for FLUX.1."""
GATHERED_SHARE = 8
"""At most this part of all slots is gathered."""


class BlockRunner(Protocol):
    """See `double_block` and `single_block`. `loras` are those of the batch, which `prepare` was called with."""

    def prepare(self, loras: BatchLoras | None) -> None:
        """Must be called before each pass."""

    def kernel_layers(self, layers: frozenset[str]) -> frozenset[str]:
        """Those of the layers with LoRAs on which the kernels of a pass depend."""

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
        self._names = {
            id(block): [f"transformer.{path}.{name}" for name, _ in _named_linears(block)]
            for path, block in _blocks(transformer)
        }

    def prepare(self, loras: BatchLoras | None) -> None:
        pass

    def kernel_layers(self, layers: frozenset[str]) -> frozenset[str]:
        return layers

    def double(
        self, block: Any, image: Tensor, text: Tensor, vectors: Tensor, rotary: Rotary, loras: BatchLoras | None
    ) -> tuple[Tensor, Tensor]:
        linears = self._linears(block, loras)
        with batch_invariant(image.device, len(image)):
            return double_block(block, image, text, vectors, rotary, self._attention, linears)

    def single(self, block: Any, tokens: Tensor, vectors: Tensor, rotary: Rotary, loras: BatchLoras | None) -> Tensor:
        linears = self._linears(block, loras)
        with batch_invariant(tokens.device, len(tokens)):
            return single_block(block, tokens, vectors, rotary, self._attention, linears)

    def _linears(self, block: Any, loras: BatchLoras | None) -> Linears:
        add = None if loras is None else partial(self._add_loras, self._names[id(block)], loras)
        return partial(_apply_layers, block, add)

    def _add_loras(
        self, names: Sequence[str], loras: BatchLoras, positions: Sequence[int], inputs: Tensor, outputs: list[Tensor]
    ) -> list[Tensor]:
        add_loras(loras, self._groups[names[0]], [names[position] for position in positions], inputs, outputs)
        return outputs


class LoraTensors(NamedTuple):
    """The LoRAs of a batch in one block, as arguments of a compiled function. See `sum_low_rank`."""

    rows: Tensor
    constants: Tensor
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
        self._lora_slots = lora_slots
        self._groups = {
            id(block): lora_slots.groups[f"transformer.{path}.{_named_linears(block)[0][0]}"]
            for path, block in _blocks(transformer)
            if lora_slots.count
        }
        in_blocks = frozenset[str]().union(*(group.columns for group in self._groups.values()))
        self._layers_outside = (
            frozenset(name for name in lora_slots.groups if name.startswith("transformer.")) - in_blocks
        )
        self._gathered = GatheredSlots(self._groups.values(), min(MAX_GATHERED, lora_slots.count // GATHERED_SHARE))
        self._double = Compiled("the double blocks", _double_block, backend, WHOLE_ROWS)
        self._single = Compiled("the single blocks", _single_block, backend, WHOLE_ROWS)

    def prepare(self, loras: BatchLoras | None) -> None:
        if loras is not None and _can_compile(loras):
            self._gathered.gather(loras.parts[0].slots, self._lora_slots.version)

    def kernel_layers(self, layers: frozenset[str]) -> frozenset[str]:
        """Compiled blocks add LoRAs to all layers, zeros included."""
        return layers & self._layers_outside

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
        (part,) = loras.parts
        return LoraTensors(*self._gathered.select(self._groups[id(block)], part.slots), part.scales)


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
    return double_block(block, image, text, vectors, rotary, attention, _compiled_linears(block, loras))


def _single_block(
    block: FluxSingleTransformerBlock,
    tokens: Tensor,
    vectors: Tensor,
    rotary: Rotary,
    attention: Attention,
    loras: LoraTensors | None,
) -> Tensor:
    return single_block(block, tokens, vectors, rotary, attention, _compiled_linears(block, loras))


def _compiled_linears(block: nn.Module, loras: LoraTensors | None) -> Linears:
    if loras is None:
        return partial(_apply_layers, block, None)
    columns = layer_columns([layer for _, layer in _named_linears(block)])

    def add(positions: Sequence[int], inputs: Tensor, outputs: list[Tensor]) -> list[Tensor]:
        """To all layers, zeros included, so that the function is the same for every choice of layers."""
        layers = [(columns[position], output) for position, output in zip(positions, outputs, strict=True)]
        return sum_low_rank(*loras, layers, inputs)

    return partial(_apply_layers, block, add)


AddLoras = Callable[[Sequence[int], Tensor, list[Tensor]], list[Tensor]]
"""Adds LoRAs to outputs of layers with these positions in their block, and the same inputs."""


def _apply_layers(block: nn.Module, add: AddLoras | None, inputs: Tensor, layers: Sequence[nn.Linear]) -> list[Tensor]:
    # It skips the hooks of the layers, so that LoRAs are added only here.
    outputs = multiply(inputs, layers)
    if add is None:
        return outputs
    # Found by identity, because a compiled function is the same for all blocks.
    positions = [
        position for layer in layers for position, (_, other) in enumerate(_named_linears(block)) if other is layer
    ]
    return add(positions, inputs, outputs)


def _blocks(transformer: FluxTransformer2DModel) -> list[tuple[str, nn.Module]]:
    """The blocks by path."""
    return [
        (path, block)
        for path, block in transformer.named_modules()
        if isinstance(block, FluxTransformerBlock | FluxSingleTransformerBlock)
    ]


def _named_linears(block: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear layers of a block by path, in the order of the columns of the block's slots."""
    return [(path, layer) for path, layer in block.named_modules() if isinstance(layer, nn.Linear)]
