"""The weights of one LoRA in the one form that is applied here, whatever format they were published in.

Names of layers are those of diffusers' FluxTransformer2DModel and of transformers' CLIPTextModel. Knows no files, no
formats, no devices, and not how weights are applied.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch


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
    named: tuple[str, ...] = ()
    """Tensors of the file that are not applied, each with the reason, fit to be shown to the caller."""

    @property
    def rank(self) -> int:
        """The largest rank of any layer; 0 without layers."""
        return max((layer.rank for part in (self.transformer, self.clip) for layer in part.values()), default=0)

    @property
    def size_bytes(self) -> int:
        """Bytes of all matrices, one that is shared by several layers counted for each."""
        return sum(layer.size_bytes for part in (self.transformer, self.clip) for layer in part.values())
