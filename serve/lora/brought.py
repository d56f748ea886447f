"""A LoRA that is at hand for drawing, and how it came to be. Values only: knows neither tensors nor who keeps them."""

from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

Held = TypeVar("Held")

Origin = Literal["download", "disk", "memory"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the weights of a LoRA beside the weights themselves."""

    key: str
    """Names the content for good: 64 hexadecimal digits. Equal weights have equal keys, wherever they came from."""
    size_bytes: int
    """As they are drawn with, after conversion."""
    rank: int
    unapplied: tuple[str, ...] = ()
    """Tensors of the file that are not applied, each with the reason, fit to be shown to the caller."""


@dataclass(frozen=True, slots=True)
class Copy(Generic[Held]):
    """The weights in memory, as a block of `serve.lora.packed`."""

    held: Held
    """Where they lie."""
    number: str
    """Tells it from a later copy of the same."""


@dataclass(frozen=True, slots=True)
class Brought(Generic[Held]):
    facts: Facts
    copy: Copy[Held]
    origin: Origin
    """Where they came from for this request."""
    fetched_bytes: int = 0
    """What was downloaded for this request, before conversion."""
    fetch_s: float = 0.0
    check_s: float = 0.0
    outdated: bool = False
    """They are older than they may be, but where they came from could not be asked again."""

    def again(self) -> "Brought[Held]":
        """The same for a request that finds it in memory."""
        return replace(self, origin="memory", fetched_bytes=0, fetch_s=0.0, check_s=0.0, outdated=False)
