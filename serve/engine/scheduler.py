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

from serve.engine import device
from serve.engine.batch_executor import BatchExecutor
from serve.engine.checkpoint import Checkpoint
from serve.engine.denoiser import Denoiser
from serve.engine.image_processor import ImageProcessor
from serve.engine.lora_manager import NO_LORAS, LoraManager
from serve.engine.lora_staging import LoraStager
from serve.engine.prompt_encoder import PromptEncoder
from serve.engine.request import ImageReady
from serve.engine.request_state import ImageState, RequestState
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
        self.costs = StepCosts() if costs is None else costs
        self._watchdog = watchdog
        self._max_sequence_length = checkpoint.max_sequence_length
        self.denoiser = Denoiser(checkpoint, pool)
        self._images = ImageProcessor(checkpoint, pool, self.denoiser)
        self._order = make_work_order(pool, self.costs, self._images.latent_space.grid)
        self.executor = BatchExecutor(
            checkpoint, self.denoiser, self._images.previewer, pool, watchdog, self._order, self.costs, clock
        )
        self.loras = LoraManager(checkpoint.lora_slots)
        self.lora_stager: LoraStager | None = None
        """Without it, LoRAs are converted when they are loaded."""
        self._requests: list[RequestState] = []
        self._device_calls: deque[DeviceCall] = deque()
        self.device_lost = False

    @property
    def has_work(self) -> bool:
        return bool(self._requests or self._device_calls)

    @property
    def can_work(self) -> bool:
        """There is work other than for requests whose LoRAs are being staged."""
        return bool(self._device_calls) or not all(request.is_staging for request in self._requests)

    @property
    def wait_s(self) -> float:
        """For how long, at least, the device is busy and no iteration is needed unless new work arrives."""
        return 0.0 if self._device_calls else self.executor.wait_s

    @property
    def prompt_encoder(self) -> PromptEncoder:
        return self._images.prompt_encoder

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

    def compile(self, size: Size) -> None:
        """Compiles the transformer, if it is to be compiled. `size` is the size of an image, in pixels."""
        self.denoiser.warm_up(self._images.tokens(size), self._max_sequence_length)

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
            if request.ended:
                self.denoiser.forget(request.images or ())
                if request.active_loras is not None:
                    self.loras.release(request.active_loras)
        self._requests = [request for request in self._requests if not request.ended]

    def _load_loras(self) -> None:
        """Oldest request first, so that newer ones cannot take the slots it waits for. Loads for one request."""
        for request in self._requests:
            if request.active_loras is None and not request.parameters.loras:
                request.attach_loras(NO_LORAS)
        for request in [request for request in self._requests if request.active_loras is None]:
            resident = self.loras.are_resident(request.parameters.loras)
            if not resident and self.lora_stager is not None:
                request.staging = self.lora_stager.extend(request.staging, request.parameters.lora_weights)
            # Staging takes a short time, in which newer requests may use what is there.
            if resident or not request.is_staging:
                self._acquire_loras(request, resident)
                if not resident:
                    return

    def _acquire_loras(self, request: RequestState, resident: bool) -> None:
        """Only the copy of LoRAs to the device waits for queued passes."""
        work, parameters = WorkItem("lora"), request.parameters
        arguments = parameters.loras, parameters.lora_weights, request.staging.loras

        def acquire() -> None:
            active_loras = self.loras.acquire(*arguments)
            if active_loras is not None:
                request.attach_loras(active_loras)

        if self._run_for(request, work, partial(self.loras.can_acquire, *arguments), uses_device=False):
            self._run_for(request, work, acquire, uses_device=not resident)

    def _encode_prompts(self) -> None:
        for request in self._requests:
            if request.encoded_prompt is None and request.active_loras is not None:
                self._run_for(request, WorkItem("text"), partial(self._images.encode_prompt, request))

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
            self._run_for(request, work, partial(self._images.encode_image, request))

    def _decode(self, request: RequestState, image: ImageState) -> None:
        assert request.images is not None
        request.start()
        work = WorkItem("decode", pixels=request.pixels)
        pixels = self._run_for(request, work, partial(self._images.decode, request, image))
        if pixels is None or request.cancel_token.cancelled:
            return
        request.images.remove(image)
        request.emit(ImageReady(image.index, partial(device.to_host, pixels)))
        if not request.images:
            request.complete()

    def _run_for(
        self, request: RequestState, work: WorkItem, action: Callable[[], Result], uses_device: bool = True
    ) -> Result | None:
        """Runs work for one request; work on the device after all queued passes. An error fails that request; only the
        log has the cause of an unexpected one."""
        if uses_device:
            self._finish_passes()
        if request.ended or request.cancel_token.cancelled:
            return None
        start_s = self._clock()
        try:
            with self._watchdog.track(work):
                result = action()
                if uses_device:
                    device.synchronize(self._device)
        except ServiceError as error:
            request.fail(error)
            return None
        except Exception as error:
            _log.exception("%s failed; its request fails", work)
            self.denoiser.free_memory_after(error)
            self._fail(request)
            return None
        seconds = self._clock() - start_s
        request.record_time(work.kind, seconds)
        if work.kind == "decode" or work.kind == "encode_image":
            self.costs.record(work.kind, self._images.tokens(request.parameters.size), seconds)
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
            self.denoiser.free_memory_after(error)
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
        if device.is_responsive(self._device):
            device.empty_cache(self._device)
        else:
            self.device_lost = True
