"""Resolved LoRAs: the weights that a reference led to, and how they were obtained."""

from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

BlockRefT = TypeVar("BlockRefT")

Origin = Literal["download", "disk", "memory"]


@dataclass(frozen=True, slots=True)
class LoraMetadata:
    """Describes the converted weights of a LoRA."""

    key: str
    """SHA-256 of the packed weights, 64 hexadecimal digits: equal weights have equal keys, whatever their source."""
    size_bytes: int
    """Size of the packed weights, after conversion."""
    rank: int
    unapplied: tuple[str, ...] = ()
    """Tensors of the file that are not applied, each with the reason, in words for the caller."""


@dataclass(frozen=True, slots=True)
class CacheHandle(Generic[BlockRefT]):
    """Weights in memory, packed by `serve.lora.weights.pack`."""

    block: BlockRefT
    """Refers to the block, for example in Ray's object store."""
    id: str
    """Distinguishes this copy of the block from earlier and later ones."""


@dataclass(frozen=True, slots=True)
class ResolvedLora(Generic[BlockRefT]):
    """A LoRA that is ready to use, and how it was obtained for one request."""

    metadata: LoraMetadata
    handle: CacheHandle[BlockRefT]
    origin: Origin
    """Where the weights came from for this request."""
    fetched_bytes: int = 0
    """Bytes downloaded for this request, before conversion."""
    fetch_s: float = 0.0
    check_s: float = 0.0
    stale: bool = False
    """The cached weights are due for revalidation, but the provider could not be reached."""

    def as_memory_hit(self) -> "ResolvedLora[BlockRefT]":
        """The same LoRA for a request that finds it in memory."""
        return replace(self, origin="memory", fetched_bytes=0, fetch_s=0.0, check_s=0.0, stale=False)
