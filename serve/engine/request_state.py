"""State of requests and images inside the engine."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from serve.engine.latents import LatentGrid, LatentSpace
from serve.engine.lora_manager import NO_LORAS, ActiveLoras, Scales
from serve.engine.prompt_encoder import PromptEmbeds
from serve.engine.request import Canceled, Completed, EngineEvent, Failed, GenerationRequest, Listener
from serve.engine.sigmas import SigmaSchedule, make_sigma_schedule
from serve.errors import ServiceError
from serve.events import Started
from serve.model_specs import Size


@dataclass(frozen=True, slots=True)
class InpaintLatents:
    """What an inpainting returns to wherever its mask keeps the picture. Packed, [1, tokens, channels] each."""

    latents: Tensor
    noise: Tensor
    mask: Tensor
    """1 where latents are drawn anew, 0 where they are kept."""


class BatchKey(NamedTuple):
    """What images must agree in to share a pass."""

    grid: LatentGrid
    max_sequence_length: int
    loras: Scales = ()
    """Nothing, unless LoRAs are kept apart."""


@dataclass(slots=True, eq=False)
class ImageState:
    """One image of a job between its noise and its pixels."""

    index: int
    """Its index among the images of its job."""
    prompt_embeds: PromptEmbeds
    guidance: float
    """Not read by transformers without a guidance embedding."""
    sigmas: SigmaSchedule
    grid: LatentGrid
    img_ids: Tensor
    """[tokens, 3]"""
    latents: Tensor
    """[1, tokens, channels], after `done` steps."""
    active_loras: ActiveLoras = NO_LORAS
    inpaint: InpaintLatents | None = None
    step: int = 0

    @property
    def finished(self) -> bool:
        return self.step == self.sigmas.steps

    @property
    def batch_key(self) -> BatchKey:
        return BatchKey(self.grid, self.prompt_embeds.prompt_embeds.shape[1])


class LatentsPreparer:
    """Begins the images of jobs in one latent space."""

    def __init__(self, space: LatentSpace, scheduler_config: Mapping[str, Any]) -> None:
        self._space = space
        self._scheduler_config = scheduler_config

    def prepare(
        self,
        job: GenerationRequest,
        text: PromptEmbeds,
        mix: ActiveLoras,
        posterior: DiagonalGaussianDistribution | None,
    ) -> list[ImageState]:
        """All images of the job, before their first step. `posterior` is that of its picture, if it has one."""
        assert job.plan.size is not None
        plan, grid = job.plan, self._space.grid(job.plan.size)
        schedule = make_sigma_schedule(self._scheduler_config, grid.tokens, plan.steps, plan.strength)
        positions = self._space.img_ids(grid)
        repaint = None if job.mask is None else self._space.pack_mask(job.mask)
        drafts = []
        for image, seed in enumerate(plan.seeds):
            generator = torch.Generator("cpu").manual_seed(seed)
            # The picture's sample is drawn before the noise: diffusers does, and the generator gives each number once.
            sample = None if posterior is None else self._space.sample(posterior, generator)
            noise = self._space.noise(generator, grid)
            latents = noise if sample is None else add_noise(sample, noise, schedule.sigmas[0])
            draft = ImageState(image, text, plan.guidance or 0.0, schedule, grid, positions, latents, mix)
            if sample is not None and repaint is not None:
                draft.inpaint = InpaintLatents(sample, noise, repaint)
            drafts.append(draft)
        return drafts


def add_noise(latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """`latents` with the share `sigma` of noise, in their own dtype, which rounds `sigma` too."""
    share = torch.full((1, 1, 1), sigma, device=latents.device, dtype=torch.float32).to(latents.dtype)
    return share * noise + (1.0 - share) * latents


_PREPARATIONS = ("lora", "text", "encode_image")
_log = logging.getLogger(__name__)


class CancelToken:
    """What the submitter of a job holds on to."""

    def __init__(self) -> None:
        self.cancelled = False
        """The submitter no longer wants the job."""


@dataclass(slots=True, eq=False)
class RequestState:
    """One job from its arrival to its end. All but `ticket` belongs to the engine's thread."""

    number: int
    """The smaller, the older."""
    request: GenerationRequest
    listener: Listener
    cancel_token: CancelToken = field(default_factory=CancelToken)
    active_loras: ActiveLoras | None = None
    """Its LoRAs; None until they are on the device."""
    prompt_embeds: PromptEmbeds | None = None
    images: list[ImageState] | None = None
    """Its images that have no pixels yet; None until they have begun."""
    ended: bool = False
    _submitted_s: float = field(default_factory=time.monotonic)
    _started_s: float | None = None
    _stepped_s: float | None = None
    _spent_s: dict[str, float] = field(default_factory=dict)
    _passes: int = 0
    _shared: int = 0

    def attach_loras(self, mix: ActiveLoras | None) -> None:
        """Its LoRAs are on the device, unless `mix` is None; what it carried is no longer needed then."""
        if mix is not None:
            self.active_loras = mix
            self.request = replace(self.request, loras={})

    @property
    def size(self) -> Size:
        assert self.request.plan.size is not None
        return self.request.plan.size

    @property
    def pixels(self) -> int:
        width, height = self.size
        return width * height

    def emit(self, event: EngineEvent) -> None:
        """A listener that fails is one that has gone."""
        try:
            self.listener(event)
        except Exception:
            _log.exception("a listener failed, so its job is let go")
            self.cancel_token.cancelled = True

    def start(self) -> None:
        """Says, the first time, that its images are drawn from now on."""
        if self._started_s is None:
            self._started_s = time.monotonic()
            self.emit(Started(self.prompt_embeds.notes if self.prompt_embeds else ()))

    def record_time(self, kind: str, seconds: float) -> None:
        """A piece of work was done for this job alone."""
        self._spent_s[kind] = self._spent_s.get(kind, 0.0) + seconds

    def record_batch(self, batch: int) -> None:
        """A pass of `batch` images held some of its own."""
        self._passes += 1
        self._shared += batch
        self._stepped_s = time.monotonic()

    def finish(self) -> None:
        self._end(Completed(self._stages_ms(), self._shared / self._passes if self._passes else 0.0))

    def fail(self, error: ServiceError) -> None:
        self._end(Failed(error))

    def cancel(self) -> None:
        self._end(Canceled())

    def _end(self, event: Completed | Failed | Canceled) -> None:
        self.ended = True
        self.emit(event)

    def _stages_ms(self) -> dict[str, float]:
        """Each moment counts for one stage: before the first step what is no preparation was the queue, after the last
        step all is decoding."""
        now = time.monotonic()
        started = self._started_s or now
        prepared = {stage: self._spent_s[stage] for stage in _PREPARATIONS if stage in self._spent_s}
        stages = {"queue": started - self._submitted_s - sum(prepared.values()), **prepared}
        if self._stepped_s is not None:
            stages["denoise"] = self._stepped_s - started
        stages["decode"] = now - (self._stepped_s or started)
        return {stage: 1000 * seconds for stage, seconds in stages.items()}
