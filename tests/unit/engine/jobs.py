"""Jobs to test with, and a listener that keeps what it hears."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from serve.engine.checkpoint import Checkpoint
from serve.engine.request import (
    Canceled,
    Completed,
    EngineEvent,
    Failed,
    GenerationRequest,
    ImageArray,
    ImageReady,
    MaskArray,
)
from serve.engine.request_state import RequestState
from serve.engine.scheduler import Scheduler
from serve.engine.watchdog import Watchdog
from serve.events import StepDone
from serve.lora.weights import LoraWeights
from serve.model_specs import Size
from serve.plan import Mode, Plan
from serve.settings import PoolSettings

SIZE: Size = (96, 64)


def make_job(
    mode: Mode = "text_to_image", size: Size = SIZE, carried: Mapping[str, LoraWeights] | None = None, **fields: Any
) -> GenerationRequest:
    """A small job; pictures and masks are the same for a size. Carries the weights of LoRAs that `fields` name."""
    plan: dict[str, Any] = {
        "pool": "test",
        "mode": mode,
        "prompt": "a red sailboat",
        "size": size,
        "steps": 4,
        "guidance": 3.0,
        "strength": None if mode == "text_to_image" else 0.6,
        "seeds": (7,),
        "output_format": "png",
        "output_quality": 80,
        "check_safety": False,
        "max_megapixels": 1.0,
    }
    return GenerationRequest(
        Plan(**plan | fields),
        image=None if mode == "text_to_image" else make_picture(size),
        mask=make_mask(size) if mode == "inpainting" else None,
        loras=carried or {},
    )


def make_picture(size: Size) -> ImageArray:
    """Colours that run and a hard edge."""
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    shades = np.stack((rows * 255 // height, columns * 255 // width, (rows > height // 2) * 200), axis=-1)
    return shades.astype(np.uint8)


def make_mask(size: Size) -> MaskArray:
    """Repaints the left third, with an edge of all greys and off the grid of latents."""
    width, height = size
    ramp = np.clip(255 - (np.arange(width) - width // 3) * 16, 0, 255).astype(np.uint8)
    return np.tile(ramp, (height, 1))


class Sitting:
    """A job that is drawn, and all that was heard of it."""

    def __init__(self, number: int, job: GenerationRequest) -> None:
        self.task = RequestState(number, job, self._hear)
        self.events: list[EngineEvent] = []
        self.latents: dict[int, Tensor] = {}
        """Of each image, after its last step so far."""

    @property
    def end(self) -> EngineEvent:
        return self.events[-1]

    @property
    def pixels(self) -> list[ImageArray]:
        return [event.to_host() for event in self.events if isinstance(event, ImageReady)]

    @property
    def steps(self) -> int:
        return sum(isinstance(event, StepDone) for event in self.events)

    def _hear(self, event: EngineEvent) -> None:
        assert not self.events or not isinstance(self.end, Completed | Failed | Canceled), "an event after the end"
        self.events.append(event)
        if isinstance(event, StepDone):
            drafts = {draft.index: draft for draft in self.task.images or ()}
            self.latents[event.image] = drafts[event.image].latents.clone()


def draw_together(
    checkpoint: Checkpoint, arrivals: Iterable[tuple[int, GenerationRequest]], **pool: Any
) -> tuple[Scheduler, list[Sitting]]:
    """Draws jobs in one loop, each admitted at its round, until all have ended."""
    loop = Scheduler(checkpoint, PoolSettings(model="", **pool), Watchdog())
    sittings = [Sitting(number, job) for number, (_, job) in enumerate(arrivals)]
    waiting = [(at, sitting) for (at, _), sitting in zip(arrivals, sittings, strict=True)]
    rounds = 0
    while waiting or loop.busy:
        loop.add([sitting.task for at, sitting in waiting if at <= rounds], ())
        waiting = [(at, sitting) for at, sitting in waiting if at > rounds]
        loop.step()
        rounds += 1
    return loop, sittings


def draw(checkpoint: Checkpoint, job: GenerationRequest) -> Sitting:
    """Draws a job alone; it must succeed."""
    _, (sitting,) = draw_together(checkpoint, [(0, job)])
    assert isinstance(sitting.end, Completed)
    return sitting
