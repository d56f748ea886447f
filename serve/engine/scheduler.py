"""Schedules the work of the engine's thread.

A piece of work that fails ends its own request and no other.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from time import monotonic
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from serve.engine import device
from serve.engine.batch_executor import BatchExecutor
from serve.engine.checkpoint import Checkpoint
from serve.engine.latents import LatentSpace, add_noise, paste_kept_pixels
from serve.engine.lora_manager import NO_LORAS, LoraManager
from serve.engine.prompt_encoder import PromptEncoder
from serve.engine.request import ImageReady
from serve.engine.request_state import ImageState, InpaintLatents, RequestState
from serve.engine.sigmas import make_sigma_schedule
from serve.engine.step_costs import StepCosts
from serve.engine.watchdog import Watchdog, WorkItem
from serve.engine.work_order import make_work_order
from serve.errors import EngineFailed, ServiceError
from serve.model_specs import Size
from serve.settings import PoolSettings

Result = TypeVar("Result")
DeviceCall = tuple["Future[Any]", Callable[[], Any]]
"""Other work for the device's thread, such as a safety model, and the future of its result."""
_log = logging.getLogger(__name__)


class Scheduler:
    """Runs requests step by step. Belongs to the engine's thread, without locks."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        pool: PoolSettings,
        watchdog: Watchdog,
        costs: StepCosts | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._device = checkpoint.device
        self._clock = clock
        self._costs = StepCosts() if costs is None else costs
        self._watchdog = watchdog
        self._prompt_encoder = PromptEncoder(checkpoint, pool.prompt_cache_entries)
        self._latent_space = LatentSpace(checkpoint)
        self._max_sequence_length = checkpoint.max_sequence_length
        self._noise_scheduler_config = checkpoint.noise_scheduler_config
        self._order = make_work_order(pool, self._costs, self._latent_space.grid)
        self.executor = BatchExecutor(checkpoint, pool, watchdog, self._order, self._costs, clock)
        self.loras = LoraManager(checkpoint.lora_slots)
        self._requests: list[RequestState] = []
        self._device_calls: deque[DeviceCall] = deque()
        self.device_lost = False

    @property
    def has_work(self) -> bool:
        return bool(self._requests or self._device_calls)

    @property
    def wait_s(self) -> float:
        """For how long, at least, the device is busy and no iteration is needed unless new work arrives."""
        return 0.0 if self._device_calls else self.executor.wait_s

    @property
    def unfinished_images(self) -> int:
        """Images of requests that have not ended."""
        return sum(len(request.parameters.seeds) for request in self._requests if not request.ended)

    def add(self, requests: Sequence[RequestState], device_calls: Sequence[DeviceCall]) -> None:
        """Adds requests, each newer than all before, and device calls."""
        self._requests = [*self._requests, *requests]
        self._device_calls.extend(device_calls)

    @torch.no_grad()
    def step(self) -> None:
        """One iteration: loads the missing LoRAs of at most one request, encodes new prompts, makes at most one device
        call, and encodes or decodes an image, or runs a batch, or both, as the order of work demands. Cancelled and
        ended requests are dropped before each part."""
        for part in (self._load_loras, self._encode_prompts, self._call_device, self._run_vae_or_batch):
            self._drop_ended()
            part()
        self._drop_ended()

    def warm_up(self, size: Size) -> None:
        """Compiles the transformer, if it is to be compiled. `size` is the size of an image, in pixels."""
        tokens = self._latent_space.grid(size).tokens
        self.executor.denoiser.warm_up(tokens, self._max_sequence_length)

    def fail_all(self, error: EngineFailed) -> None:
        """Fails all requests and cancels all device calls."""
        self.executor.finish()
        for request in self._requests:
            if not request.ended:
                request.fail(error)
        self._drop_ended()
        for future, _ in self._device_calls:
            future.cancel()
        self._device_calls.clear()

    def _drop_ended(self) -> None:
        for request in self._requests:
            # A request ends when the device no longer works on it.
            if request.cancel_token.cancelled and not request.ended and not self.executor.is_running(request):
                request.cancel()
        for request in self._requests:
            if request.ended and request.active_loras is not None:
                self.loras.release(request.active_loras)
        self._requests = [request for request in self._requests if not request.ended]

    def _load_loras(self) -> None:
        """Oldest request first, so that newer ones cannot take the slots it waits for. Loads for one request."""
        for request in self._requests:
            if request.active_loras is None and not request.parameters.loras:
                request.attach_loras(NO_LORAS)
        for request in [request for request in self._requests if request.active_loras is None]:
            resident = self.loras.are_resident(request.parameters.loras)
            self._run_for(request, WorkItem("lora"), partial(self._acquire_loras, request))
            if not resident:
                return

    def _acquire_loras(self, request: RequestState) -> None:
        parameters = request.parameters
        active_loras = self.loras.acquire(parameters.loras, parameters.lora_weights, request.staged_loras)
        if active_loras is not None:
            request.attach_loras(active_loras)

    def _encode_prompts(self) -> None:
        for request in self._requests:
            if request.encoded_prompt is None and request.active_loras is not None:
                self._run_for(request, WorkItem("text"), partial(self._encode_prompt, request))

    def _encode_prompt(self, request: RequestState) -> None:
        """Encodes the prompt and, without an input image, prepares the images."""
        assert request.active_loras is not None
        request.encoded_prompt = self._prompt_encoder.encode(request.parameters.prompt, request.active_loras)
        if request.parameters.image is None:
            self._prepare_images(request, None)

    def _run_vae_or_batch(self) -> None:
        request = self._order.next_for_vae(self._requests)
        if request is not None:
            self._run_vae(request)
            self._drop_ended()
        if request is None or self._order.batch_follows_vae:
            self._run_batch()

    def _run_vae(self, request: RequestState) -> None:
        """Encodes the input image of the request, or decodes one of its finished images."""
        finished = request.finished_image
        if finished is not None:
            self._decode(request, finished)
        else:
            work = WorkItem("encode_image", pixels=request.pixels)
            self._run_for(request, work, partial(self._encode_image, request))

    def _encode_image(self, request: RequestState) -> None:
        assert request.parameters.image is not None
        self._prepare_images(request, self._latent_space.encode(request.parameters.image))

    def _prepare_images(self, request: RequestState, posterior: DiagonalGaussianDistribution | None) -> None:
        """Creates the images of a request with their initial latents. `posterior` is that of its input image."""
        assert request.encoded_prompt is not None
        assert request.active_loras is not None
        parameters, space = request.parameters, self._latent_space
        grid = space.grid(parameters.size)
        sigmas = make_sigma_schedule(self._noise_scheduler_config, grid.tokens, parameters.steps, parameters.strength)
        conditioning = self.executor.denoiser.condition(
            request.encoded_prompt, space.img_ids(grid), sigmas, parameters.guidance, request.active_loras
        )
        mask = None if parameters.mask is None else space.pack_mask(parameters.mask)
        request.images = []
        for index, seed in enumerate(parameters.seeds):
            generator = torch.Generator("cpu").manual_seed(seed)
            # The sample is generated before the noise, as in diffusers: both come from the same generator.
            sample = None if posterior is None else space.sample(posterior, generator)
            noise = space.noise(generator, grid)
            image = ImageState(
                index=index,
                conditioning=conditioning,
                schedule=sigmas,
                grid=grid,
                latents=noise if sample is None else add_noise(sample, noise, sigmas.sigmas[0]),
                active_loras=request.active_loras,
            )
            if sample is not None and mask is not None:
                image.inpaint = InpaintLatents(sample, noise, mask)
            request.images.append(image)

    def _decode(self, request: RequestState, image: ImageState) -> None:
        assert request.images is not None
        request.start()
        work = WorkItem("decode", pixels=request.pixels)
        pixels = self._run_for(request, work, partial(self._to_pixels, request, image))
        if pixels is None or request.cancel_token.cancelled:
            return
        request.images.remove(image)
        request.emit(ImageReady(image.index, partial(device.to_host, pixels)))
        if not request.images:
            request.complete()

    def _to_pixels(self, request: RequestState, image: ImageState) -> Tensor:
        """uint8 [height, width, 3] on the device."""
        parameters = request.parameters
        pixels = self._latent_space.decode(image.latents, image.grid, parameters.size)
        if parameters.image is None or parameters.mask is None:
            return pixels
        return paste_kept_pixels(pixels, parameters.image, parameters.mask)

    def _run_for(self, request: RequestState, work: WorkItem, action: Callable[[], Result]) -> Result | None:
        """Runs work for one request, after all queued passes. An error fails that request; only the log has the cause
        of an unexpected one."""
        self._finish_passes()
        if request.ended or request.cancel_token.cancelled:
            return None
        start_s = self._clock()
        try:
            with self._watchdog.track(work):
                result = action()
                device.synchronize(self._device)
        except ServiceError as error:
            request.fail(error)
            return None
        except Exception:
            _log.exception("%s failed; its request fails", work)
            self._fail(request)
            return None
        seconds = self._clock() - start_s
        request.record_time(work.kind, seconds)
        if work.kind == "decode" or work.kind == "encode_image":
            tokens = self._latent_space.grid(request.parameters.size).tokens
            self._costs.record(work.kind, tokens, seconds)
        return result

    def _call_device(self) -> None:
        if not self._device_calls:
            return
        future, action = self._device_calls.popleft()
        if not future.set_running_or_notify_cancel():
            return
        self._finish_passes()
        try:
            with self._watchdog.track(WorkItem("other")):
                future.set_result(action())
        except Exception as error:
            future.set_exception(error)

    def _run_batch(self) -> None:
        for request in self.executor.run_next(self._requests):
            self._fail(request)

    def _finish_passes(self) -> None:
        for request in self.executor.finish():
            self._fail(request)

    def _fail(self, request: RequestState) -> None:
        if not request.ended:
            request.fail(EngineFailed())
        device.empty_cache(self._device)
        self.device_lost = self.device_lost or not device.is_responsive(self._device)
