"""LoRA weights in the form that the engine applies, and their serialization to one block of bytes."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from serve.lora.safetensors_header import LENGTH_BYTES, Header, TensorEntry, read_header

Block = NDArray[np.uint8]
"""Packed `LoraWeights`: a safetensors file in memory."""

_BLOCK_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_METADATA_KEY = "lora"
_MAX_MATRICES = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The change of one linear layer: `scale * up @ down` is added to its weight `[out, in]`, `bias` to its bias."""

    down: torch.Tensor
    """`[rank, in]`, float32, float16 or bfloat16, on the CPU. Layers split from one fused layer may share it."""
    up: torch.Tensor
    """`[out, rank]`, of the same dtype."""
    scale: float = 1.0
    """Alpha divided by the rank, from the file. Does not include the scale in a request."""
    bias: torch.Tensor | None = None
    """`[out]`, float32. `scale` is not applied to it."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def slots(self) -> int:
        """The slots that it takes on the device: one for each rank, and one for the bias."""
        return self.rank + (self.bias is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Kronecker:
    """The change of one linear layer's weight: `outputs` rows of `scale * kron(outer, inner)`."""

    outer: torch.Tensor
    """`[outer_out, outer_in]`, float32, float16 or bfloat16, on the CPU."""
    inner: torch.Tensor
    """`[inner_out, inner_in]`. Layers split from one fused layer share it."""
    first_row: int
    """Rows before the layer's own; they belong to other layers that the file fuses with it."""
    outputs: int
    scale: float = 1.0

    @property
    def inputs(self) -> int:
        return self.outer.shape[1] * self.inner.shape[1]

    @property
    def slots(self) -> int:
        """The slots whose memory the two matrices take on the device. A slot has a number for each input and output."""
        return -(-(self.outer.numel() + self.inner.numel()) // (self.inputs + self.outputs))


@dataclass(frozen=True, slots=True, eq=False)
class LoraWeights:
    """The weights of one LoRA, by layer name."""

    transformer: Mapping[str, LowRank]
    """Names as in `transformer_blocks.0.attn.to_q`."""
    clip: Mapping[str, LowRank]
    """Names as in `encoder.layers.0.self_attn.q_proj`, without `text_model`, as in transformers 5."""
    unapplied: tuple[str, ...] = ()
    """Tensors of the file that are not applied, each with the reason, in words for the caller."""
    kroneckers: Mapping[str, Kronecker] = field(default_factory=dict)
    """By network and layer, as in `transformer.x_embedder`. A layer may also have a `LowRank`; both are added."""

    @property
    def low_rank_slots(self) -> int:
        return max((layer.slots for part in (self.transformer, self.clip) for layer in part.values()), default=0)

    @property
    def kronecker_slots(self) -> int:
        return max((kronecker.slots for kronecker in self.kroneckers.values()), default=0)

    @property
    def slots(self) -> int:
        """The slots that it takes on the device: its largest rank, one more for a bias, and those of LoKr matrices."""
        return self.low_rank_slots + self.kronecker_slots


def pack(weights: LoraWeights) -> Block:
    """Serializes `weights`. Equal weights give equal bytes; a matrix shared by several layers is stored once."""
    names: dict[tuple[int, torch.Size, torch.dtype], str] = {}
    matrices: dict[str, torch.Tensor] = {}

    def add_matrix(matrix: torch.Tensor) -> str:
        key = (matrix.data_ptr(), matrix.shape, matrix.dtype)
        name = names.setdefault(key, str(len(names)))
        # Copied, because safetensors rejects tensors that share memory, as the parts of a split matrix do.
        matrices.setdefault(name, matrix.clone(memory_format=torch.contiguous_format))
        return name

    def pack_part(part: Mapping[str, LowRank]) -> dict[str, tuple[str, str, float, str | None]]:
        return {
            layer: (
                add_matrix(low_rank.down),
                add_matrix(low_rank.up),
                low_rank.scale,
                None if low_rank.bias is None else add_matrix(low_rank.bias),
            )
            for layer, low_rank in part.items()
        }

    fields = {
        "transformer": pack_part(weights.transformer),
        "clip": pack_part(weights.clip),
        "unapplied": weights.unapplied,
        "kroneckers": {
            layer: (add_matrix(each.outer), add_matrix(each.inner), each.first_row, each.outputs, each.scale)
            for layer, each in weights.kroneckers.items()
        },
    }
    # One metadata entry only: safetensors does not preserve the order of several.
    return np.frombuffer(safetensors.torch.save(matrices, {_METADATA_KEY: json.dumps(fields)}), np.uint8)


def unpack(block: Block) -> LoraWeights:
    """The weights in a block from `pack`, as views that must not be written to. Raises `InvalidLoraFile`."""
    view = memoryview(block.data)
    header_bytes = LENGTH_BYTES + int.from_bytes(view[:LENGTH_BYTES], "little")
    header = read_header(BytesIO(view[:header_bytes]), view.nbytes, _MAX_MATRICES)
    matrices = {name: _matrix(view, header, entry) for name, entry in header.entries.items()}
    fields: dict[str, Any] = json.loads(header.metadata[_METADATA_KEY])

    def unpack_part(part: str) -> dict[str, LowRank]:
        return {
            layer: LowRank(matrices[down], matrices[up], scale, None if bias is None else matrices[bias])
            for layer, (down, up, scale, bias) in fields[part].items()
        }

    kroneckers = {
        layer: Kronecker(matrices[outer], matrices[inner], *numbers)
        for layer, (outer, inner, *numbers) in fields["kroneckers"].items()
    }
    return LoraWeights(unpack_part("transformer"), unpack_part("clip"), tuple(fields["unapplied"]), kroneckers)


def _matrix(view: memoryview, header: Header, entry: TensorEntry) -> torch.Tensor:
    dtype = _BLOCK_DTYPES[entry.dtype]
    if entry.begin == entry.end:
        return torch.empty(entry.shape, dtype=dtype)
    with warnings.catch_warnings():
        # The block may be read-only memory. Nothing writes to the tensor.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        flat = torch.frombuffer(
            view,
            dtype=dtype,
            count=(entry.end - entry.begin) // dtype.itemsize,
            offset=header.data_offset + entry.begin,
        )
    return flat.reshape(entry.shape)
