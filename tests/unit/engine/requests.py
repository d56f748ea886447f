"""Small generation requests, a recorder of their events, and functions that run them."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from torch import Tensor

from serve.engine.checkpoint import Checkpoint
from serve.engine.request import (
    Canceled,
    Completed,
    EngineEvent,
    Failed,
    GenerationRequest,
    ImageReady,
)
from serve.engine.request_state import RequestState
from serve.engine.scheduler import Scheduler
from serve.engine.step_costs import CostKind, StepCosts
from serve.engine.watchdog import Watchdog
from serve.events import StepDone
from serve.lora.weights import LoraWeights
from serve.model_specs import ImageArray, MaskArray, Size
from serve.settings import PoolSettings

SIZE: Size = (96, 64)
Mode = Literal["text_to_image", "image_to_image", "inpainting"]


def make_request(
    mode: Mode = "text_to_image", size: Size = SIZE, weights: Mapping[str, LoraWeights] | None = None, **fields: Any
) -> GenerationRequest:
    """A small request. Its image and mask depend only on `size`. `weights` are the weights of its LoRAs."""
    parameters: dict[str, Any] = {
        "prompt": "a red sailboat",
        "size": size,
        "steps": 4,
        "guidance": 3.0,
        "strength": None if mode == "text_to_image" else 0.6,
        "seeds": (7,),
        "image": None if mode == "text_to_image" else make_image(size),
        "mask": make_mask(size) if mode == "inpainting" else None,
        "lora_weights": weights or {},
    }
    return GenerationRequest(**parameters | fields)


def make_image(size: Size) -> ImageArray:
    """Color gradients and a hard edge."""
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    values = np.stack((rows * 255 // height, columns * 255 // width, (rows > height // 2) * 200), axis=-1)
    return values.astype(np.uint8)


def make_mask(size: Size) -> MaskArray:
    """A mask of the left third. Its edge is a ramp of grey levels that is not aligned with the latents."""
    width, height = size
    ramp = np.clip(255 - (np.arange(width) - width // 3) * 16, 0, 255).astype(np.uint8)
    return np.tile(ramp, (height, 1))


class RequestRecorder:
    """Records all events of one request."""

    def __init__(self, number: int, request: GenerationRequest) -> None:
        self.state = RequestState(number, request, self._record)
        self.events: list[EngineEvent] = []
        self.latents: dict[int, Tensor] = {}
        """The latents of each image index after its latest step."""

    @property
    def final_event(self) -> EngineEvent:
        return self.events[-1]

    @property
    def pixels(self) -> list[ImageArray]:
        return [event.to_host() for event in self.events if isinstance(event, ImageReady)]

    @property
    def steps(self) -> int:
        return sum(isinstance(event, StepDone) for event in self.events)

    def _record(self, event: EngineEvent) -> None:
        ended = self.events and isinstance(self.final_event, Completed | Failed | Canceled)
        assert not ended, "no event may follow the final one"
        self.events.append(event)
        if isinstance(event, StepDone):
            images = {image.index: image for image in self.state.images or ()}
            self.latents[event.index] = images[event.index].latents.clone()


class UnmeasuredCosts(StepCosts):
    """Ignores measurements, so that the order of work does not depend on the machine. Batches seem cheap."""

    def record(self, kind: CostKind, tokens: int, seconds: float, images: int = 1) -> None:
        pass


def run_requests(
    checkpoint: Checkpoint, arrivals: Iterable[tuple[int, GenerationRequest]], **pool: Any
) -> tuple[Scheduler, list[RequestRecorder]]:
    """Runs requests in one scheduler until all have ended. Arrivals are iterations before which a request is added."""
    scheduler = Scheduler(checkpoint, PoolSettings(model="", **pool), Watchdog(), UnmeasuredCosts())
    recorders = [RequestRecorder(number, request) for number, (_, request) in enumerate(arrivals)]
    pending = [(at, recorder) for (at, _), recorder in zip(arrivals, recorders, strict=True)]
    iteration = 0
    while pending or scheduler.has_work:
        scheduler.add([recorder.state for at, recorder in pending if at <= iteration], ())
        pending = [(at, recorder) for at, recorder in pending if at > iteration]
        scheduler.step()
        iteration += 1
    return scheduler, recorders


def run_request(checkpoint: Checkpoint, request: GenerationRequest, **pool: Any) -> RequestRecorder:
    """Runs a request alone; it must succeed."""
    _, (recorder,) = run_requests(checkpoint, [(0, request)], **pool)
    assert isinstance(recorder.final_event, Completed)
    return recorder
