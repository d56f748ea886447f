"""State of requests and of their images inside the engine."""

import logging
import time
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor

from serve.engine.flux_transformer import Conditioning
from serve.engine.latents import LatentGrid
from serve.engine.lora_manager import NO_LORAS, ActiveLoras, LoraScales
from serve.engine.lora_staging import Staging
from serve.engine.prompt_encoder import EncodedPrompt
from serve.engine.request import (
    Canceled,
    Completed,
    EngineEvent,
    Failed,
    FinalEvent,
    GenerationRequest,
    Interval,
    Listener,
)
from serve.engine.sigmas import SigmaSchedule
from serve.errors import ServiceError
from serve.events import Started

_PREPARATION_STAGES = ("lora", "text", "encode_image")
_log = logging.getLogger(__name__)


class BatchKey(NamedTuple):
    """Images with equal keys can share a batch."""

    grid: LatentGrid
    sequence_length: int
    loras: LoraScales = ()
    """Empty unless batches must not mix LoRAs."""


@dataclass(frozen=True, slots=True)
class InpaintLatents:
    """Latents that inpainting restores outside the mask after every step. All packed, [1, tokens, channels]."""

    latents: Tensor
    """Of the input image, without noise."""
    noise: Tensor
    mask: Tensor
    """1 where latents are repainted, 0 where they are kept."""


@dataclass(slots=True, eq=False)
class ImageState:
    """Denoising state of one image."""

    index: int
    """Among the images of its request."""
    conditioning: Conditioning
    schedule: SigmaSchedule
    grid: LatentGrid
    latents: Tensor
    """Packed, [1, tokens, channels], after `step` steps."""
    active_loras: ActiveLoras = NO_LORAS
    inpaint: InpaintLatents | None = None
    step: int = 0
    """Number of steps done."""
    preview_steps: frozenset[int] = frozenset()
    """Steps, counted from 1, after which a preview is made."""

    @property
    def finished(self) -> bool:
        return self.step == self.schedule.steps

    @property
    def batch_key(self) -> BatchKey:
        return BatchKey(self.grid, self.conditioning.text.shape[1])


class CancelToken:
    """Given to the submitter of a request."""

    def __init__(self) -> None:
        self.cancelled = False
        """Set by the submitter, read by the engine's thread."""


@dataclass(slots=True, eq=False)
class RequestState:
    """One request from submission to its final event. All but `cancel_token` belongs to the engine's thread."""

    number: int
    """Increases with every request."""
    parameters: GenerationRequest
    listener: Listener
    cancel_token: CancelToken = field(default_factory=CancelToken)
    staging: Staging = field(default_factory=Staging)
    """LoRAs that are being prepared for their copy to the device."""
    active_loras: ActiveLoras | None = None
    """None until its LoRAs are on the device."""
    encoded_prompt: EncodedPrompt | None = None
    images: list[ImageState] | None = None
    """Images that are not decoded yet; None until they have latents."""
    ended: bool = False
    submitted_s: float = field(default_factory=time.monotonic)
    _started_s: float | None = None
    _last_step_s: float | None = None
    _times_s: dict[str, float] = field(default_factory=dict)
    _intervals_s: dict[str, Interval] = field(default_factory=dict)
    _batches: int = 0
    _batched_images: int = 0

    @property
    def pixels(self) -> int:
        """Of one image."""
        width, height = self.parameters.size
        return width * height

    @property
    def needs_image_encoding(self) -> bool:
        """Only its input image, if any, has to be encoded before its first step."""
        return self.encoded_prompt is not None and self.images is None

    @property
    def is_staging(self) -> bool:
        """It waits for its LoRAs to be staged, unless it is cancelled."""
        return self.active_loras is None and not (self.staging.is_done or self.cancel_token.cancelled)

    @property
    def finished_image(self) -> ImageState | None:
        """An image to decode."""
        return next((image for image in self.images or () if image.finished), None)

    @property
    def has_vae_work(self) -> bool:
        return self.needs_image_encoding or self.finished_image is not None

    def attach_loras(self, active_loras: ActiveLoras) -> None:
        """Records that the LoRAs are on the device, and drops the weights that came with the request."""
        self.active_loras = active_loras
        self.parameters = replace(self.parameters, lora_weights={})
        self._end_staging()

    def emit(self, event: EngineEvent) -> None:
        """Calls the listener. If it raises, the request is cancelled."""
        try:
            self.listener(event)
        except Exception:
            _log.exception("a listener raised; its request is cancelled")
            self.cancel_token.cancelled = True

    def start(self) -> None:
        """Emits `Started` on the first call."""
        if self._started_s is None:
            self._started_s = time.monotonic()
            self.emit(Started(self.encoded_prompt.warnings if self.encoded_prompt else ()))

    def record_time(self, stage: str, seconds: float) -> None:
        """Adds time that was spent on this request alone."""
        self._times_s[stage] = self._times_s.get(stage, 0.0) + seconds
        now_s = time.monotonic()
        start_s, _ = self._intervals_s.get(stage, (now_s - seconds, now_s))
        self._intervals_s[stage] = start_s, now_s

    def record_batch(self, size: int) -> None:
        """A batch of `size` images, with at least one of this request, has done a step."""
        self._batches += 1
        self._batched_images += size
        self._last_step_s = time.monotonic()

    def complete(self) -> None:
        mean_batch = self._batched_images / self._batches if self._batches else 0.0
        self._end(Completed(self._stages_ms(), mean_batch, self._all_intervals_s()))

    def fail(self, error: ServiceError) -> None:
        self._end(Failed(error))

    def cancel(self) -> None:
        self._end(Canceled())

    def _end(self, event: FinalEvent) -> None:
        self.ended = True
        self._end_staging()
        self.emit(event)

    def _end_staging(self) -> None:
        self.staging.release()
        self.staging = Staging()

    def _all_intervals_s(self) -> dict[str, Interval]:
        """With those of the queue and of the steps."""
        intervals = dict(self._intervals_s)
        if self._started_s is not None:
            intervals["queue"] = self.submitted_s, self._started_s
            if self._last_step_s is not None:
                intervals["denoise"] = self._started_s, self._last_step_s
        return intervals

    def _stages_ms(self) -> dict[str, float]:
        """Wall time by stage, without overlap: the time before the first step, less preparation, is `queue`, and the
        time after the last step is `decode`."""
        now_s = time.monotonic()
        started_s = now_s if self._started_s is None else self._started_s
        preparation = {stage: self._times_s[stage] for stage in _PREPARATION_STAGES if stage in self._times_s}
        stages = {"queue": started_s - self.submitted_s - sum(preparation.values()), **preparation}
        if self._last_step_s is not None:
            stages["denoise"] = self._last_step_s - started_s
        stages["decode"] = now_s - (started_s if self._last_step_s is None else self._last_step_s)
        return {stage: 1000 * seconds for stage, seconds in stages.items()}
