"""Requests to the engine and the events it emits. Does not import torch.

The last event of a request is exactly one of `Completed`, `Failed` and `Canceled`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from serve.errors import ServiceError
from serve.events import Started, StepDone
from serve.model_specs import ImageArray, MaskArray, Size

if TYPE_CHECKING:
    from serve.lora.weights import LoraWeights


@dataclass(frozen=True, slots=True)
class LoraRequest:
    """A LoRA to apply, and how strongly."""

    key: str
    """Key of the weights, as in `serve.lora.resolved_lora.LoraMetadata`."""
    scale: float


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One image per seed.

    Without `image`: text to image; with `image`: image to image; with `image` and `mask`: inpainting.
    """

    prompt: str
    size: Size
    steps: int
    seeds: tuple[int, ...]
    guidance: float | None = None
    """Required by transformers with a guidance embedding, ignored by others."""
    strength: float | None = None
    """Share of the schedule that runs over `image`, 0 to 1. Required with an image."""
    image: ImageArray | None = None
    """[height, width, 3], of the request's size."""
    mask: MaskArray | None = None
    """[height, width], of the request's size."""
    loras: tuple[LoraRequest, ...] = ()
    """The scales of a LoRA that is listed twice add up."""
    previews: int = 0
    """Of each unfinished image, at most."""
    lora_weights: "Mapping[str, LoraWeights]" = field(default_factory=dict, repr=False)
    """By key. LoRAs that are resident may be missing, at the risk of `LorasMissing` if they are evicted meanwhile."""

    def __post_init__(self) -> None:
        """Raises ValueError for an image, mask or strength that does not fit the rest."""
        width, height = self.size
        if (self.image is None) != (self.strength is None):
            raise ValueError("an image needs a strength, and a strength needs an image")
        if self.image is not None and self.image.shape != (height, width, 3):
            raise ValueError(f"the image should be {(height, width, 3)}, it is {self.image.shape}")
        if self.mask is not None and self.image is None:
            raise ValueError("a mask needs an image")
        if self.mask is not None and self.mask.shape != (height, width):
            raise ValueError(f"the mask should be {(height, width)}, it is {self.mask.shape}")


Interval = tuple[float, float]
"""Start and end, by `time.monotonic`."""


@dataclass(frozen=True, slots=True)
class ImageReady:
    """Image `image` is generated."""

    index: int
    """Index of its seed."""
    to_host: Callable[[], ImageArray] = field(repr=False)
    """Copies the image from the device: [height, width, 3]. Blocking: not for the engine's thread."""


@dataclass(frozen=True, slots=True)
class PreviewReady:
    """A small preview of image `index`, as it was predicted after `step` of its `total` steps."""

    index: int
    step: int
    total: int
    pixels: ImageArray = field(repr=False)
    """[height, width, 3]."""


@dataclass(frozen=True, slots=True)
class Completed:
    """Every image was emitted. The fields are those of `serve.events.Finished`."""

    stages_ms: dict[str, float]
    mean_batch: float
    intervals_s: dict[str, Interval] = field(default_factory=dict)
    """When each stage began and ended first and last. They overlap: the request is in the queue, up to its first step,
    while its prompt is encoded."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended without all of its images."""

    error: ServiceError


@dataclass(frozen=True, slots=True)
class Canceled:
    """The request was cancelled by its submitter."""


FinalEvent = Completed | Failed | Canceled
EngineEvent = Started | StepDone | PreviewReady | ImageReady | FinalEvent
Listener = Callable[[EngineEvent], None]
"""Called on the engine's thread, so it must return at once."""
