"""What the engine takes and emits: generation requests and engine events. Does not import torch.

The last event of a request is exactly one of `Completed`, `Failed` and `Canceled`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from serve.errors import ServiceError
from serve.events import Started, StepDone
from serve.plan import Plan

if TYPE_CHECKING:
    from serve.lora.weights import LoraWeights

ImageArray = NDArray[np.uint8]
"""[height, width, 3], RGB."""
MaskArray = NDArray[np.uint8]
"""[height, width]; from 128 on a pixel is repainted, below it is kept."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A plan with its pictures, already of the plan's size, and its LoRAs."""

    plan: Plan
    image: ImageArray | None = None
    mask: MaskArray | None = None
    loras: "Mapping[str, LoraWeights]" = field(default_factory=dict, repr=False)
    """By key. Those that lie on the device may be left out, at the risk of `LorasMissing` if they have gone by then."""

    def __post_init__(self) -> None:
        """Raises ValueError for a plan that is not complete, or pictures that are not what it speaks of."""
        if self.plan.size is None:
            raise ValueError("the plan has no size yet")
        width, height = self.plan.size
        wanted = {
            "text_to_image": (None, None),
            "image_to_image": ((height, width, 3), None),
            "inpainting": ((height, width, 3), (height, width)),
        }[self.plan.mode]
        given = tuple(None if array is None else array.shape for array in (self.image, self.mask))
        if given != wanted:
            raise ValueError(f"{self.plan.mode} at {width}x{height} needs picture and mask {wanted}, not {given}")


@dataclass(frozen=True, slots=True)
class ImageReady:
    """Image `image` is finished."""

    image: int
    to_host: Callable[[], ImageArray] = field(repr=False)
    """Copies the picture from the device, [height, width, 3]. Not for the engine's thread: it waits for the copy."""


@dataclass(frozen=True, slots=True)
class Completed:
    """Every image was told of; the fields are those of `serve.events.Finished`."""

    stages_ms: dict[str, float]
    mean_batch: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The job ended without all of its images."""

    error: ServiceError


@dataclass(frozen=True, slots=True)
class Canceled:
    """The job was left by who asked for it."""


End = Completed | Failed | Canceled
EngineEvent = Started | StepDone | ImageReady | End
Listener = Callable[[EngineEvent], None]
"""Called from the engine's thread: it must return at once, and hand on whatever takes time."""
