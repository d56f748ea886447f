"""LoRA weights in the form that the engine applies, and their serialization to one block of bytes."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
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
    """The change of one linear layer's weight `[out, in]`: `scale * up @ down`."""

    down: torch.Tensor
    """`[rank, in]`, float32, float16 or bfloat16, on the CPU. Layers split from one fused layer may share it."""
    up: torch.Tensor
    """`[out, rank]`, of the same dtype."""
    scale: float = 1.0
    """Alpha divided by the rank, from the file. Does not include the scale in a request."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class LoraWeights:
    """The weights of one LoRA, by layer name."""

    transformer: Mapping[str, LowRank]
    """Names as in `transformer_blocks.0.attn.to_q`."""
    clip: Mapping[str, LowRank]
    """Names as in `encoder.layers.0.self_attn.q_proj`, without `text_model`, as in transformers 5."""
    unapplied: tuple[str, ...] = ()
    """Tensors of the file that are not applied, each with the reason, in words for the caller."""

    @property
    def rank(self) -> int:
        """The largest rank of any layer; 0 without layers."""
        return max((layer.rank for part in (self.transformer, self.clip) for layer in part.values()), default=0)


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

    def pack_part(part: Mapping[str, LowRank]) -> dict[str, tuple[str, str, float]]:
        return {
            layer: (add_matrix(low_rank.down), add_matrix(low_rank.up), low_rank.scale)
            for layer, low_rank in part.items()
        }

    fields = {
        "transformer": pack_part(weights.transformer),
        "clip": pack_part(weights.clip),
        "unapplied": weights.unapplied,
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
            layer: LowRank(matrices[down], matrices[up], scale) for layer, (down, up, scale) in fields[part].items()
        }

    return LoraWeights(unpack_part("transformer"), unpack_part("clip"), tuple(fields["unapplied"]))


def _matrix(view: memoryview, header: Header, entry: TensorEntry) -> torch.Tensor:
    dtype = _BLOCK_DTYPES[entry.dtype]
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
