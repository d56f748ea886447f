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


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """What a LoRA adds to the weight of one linear layer: `scale * up @ down`, of the layer's [out, in]."""

    down: torch.Tensor
    """[rank, in], float32, float16 or bfloat16, on the CPU; layers that one tensor was split for may share it."""
    up: torch.Tensor
    """[out, rank], of the same dtype."""
    scale: float = 1.0
    """The file's own alpha / rank. The scale that a caller asks for is not in it."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def size_bytes(self) -> int:
        return self.down.nbytes + self.up.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class LoraWeights:
    """All that one LoRA does, by the dotted name of the layer that it acts on."""

    transformer: Mapping[str, LowRank]
    """As in `transformer_blocks.0.attn.to_q`."""
    clip: Mapping[str, LowRank]
    """As in `encoder.layers.0.self_attn.q_proj`: that model has no `text_model` inside since transformers 5."""
    unapplied: tuple[str, ...] = ()
    """Tensors of the file that are not applied, each with the reason, fit to be shown to the caller."""

    @property
    def rank(self) -> int:
        """The largest rank of any layer; 0 without layers."""
        return max((layer.rank for part in (self.transformer, self.clip) for layer in part.values()), default=0)

    @property
    def size_bytes(self) -> int:
        """Bytes of all matrices, one that is shared by several layers counted for each."""
        return sum(layer.size_bytes for part in (self.transformer, self.clip) for layer in part.values())


Block = NDArray[np.uint8]

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TOLD = "lora"
"""Where the metadata say what the matrices are."""
_MAX_MATRICES = 2**20


def pack(weights: LoraWeights) -> Block:
    """One block that holds `weights`. A matrix that several layers share is in it once."""
    numbers: dict[tuple[int, torch.Size, torch.dtype], str] = {}
    matrices: dict[str, torch.Tensor] = {}

    def number(matrix: torch.Tensor) -> str:
        key = (matrix.data_ptr(), matrix.shape, matrix.dtype)
        name = numbers.setdefault(key, str(len(numbers)))
        # Parts of a matrix that was split are copied: the library takes none that share memory.
        matrices.setdefault(name, matrix.clone(memory_format=torch.contiguous_format))
        return name

    def table(part: Mapping[str, LowRank]) -> dict[str, tuple[str, str, float]]:
        return {layer: (number(each.down), number(each.up), each.scale) for layer, each in part.items()}

    told = {"transformer": table(weights.transformer), "clip": table(weights.clip), "named": weights.unapplied}
    # One entry: the library writes several in any order, and equal weights should be equal bytes.
    return np.frombuffer(safetensors.torch.save(matrices, {_TOLD: json.dumps(told)}), np.uint8)


def unpack(block: Block) -> LoraWeights:
    """The weights in a block made by `pack`, without a copy: do not write to them. Raises `InvalidLoraFile`."""
    view = memoryview(block.data)
    head_bytes = LENGTH_BYTES + int.from_bytes(view[:LENGTH_BYTES], "little")
    header = read_header(BytesIO(view[:head_bytes]), view.nbytes, _MAX_MATRICES)
    matrices = {name: _matrix(view, header, entry) for name, entry in header.entries.items()}
    told: dict[str, Any] = json.loads(header.metadata[_TOLD])

    def part(name: str) -> dict[str, LowRank]:
        return {layer: LowRank(matrices[down], matrices[up], scale) for layer, (down, up, scale) in told[name].items()}

    return LoraWeights(part("transformer"), part("clip"), tuple(told["named"]))


def _matrix(view: memoryview, header: Header, entry: TensorEntry) -> torch.Tensor:
    dtype = _DTYPES[entry.dtype]
    with warnings.catch_warnings():
        # The block may be read-only, and is by design never written to.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        flat = torch.frombuffer(
            view,
            dtype=dtype,
            count=(entry.end - entry.begin) // dtype.itemsize,
            offset=header.data_offset + entry.begin,
        )
    return flat.reshape(entry.shape)
