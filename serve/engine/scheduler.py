"""Schedules the work of the engine's thread."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from time import monotonic
from typing import Any, TypeVar

import torch
from torch import Tensor

from serve.engine import device
from serve.engine.checkpoint import Checkpoint
from serve.engine.denoiser import BatchExecutor
from serve.engine.latents import LatentSpace, paste_kept_pixels
from serve.engine.lora_manager import NO_LORAS, LoraManager
from serve.engine.prompt_encoder import PromptEncoder
from serve.engine.request import ImageReady
from serve.engine.request_state import ImageState, LatentsPreparer, RequestState
from serve.engine.watchdog import Watchdog, WorkItem
from serve.errors import EngineFailed, ServiceError
from serve.settings import PoolSettings

Result = TypeVar("Result")
DeviceCall = tuple["Future[Any]", Callable[[], Any]]
"""Something else that needs the device, such as a safety model, and where its result goes."""
_log = logging.getLogger(__name__)


class Scheduler:
    """The jobs in work, and the parts of a checkpoint that work on them."""

    def __init__(self, checkpoint: Checkpoint, pool: PoolSettings, watch: Watchdog) -> None:
        self._device = checkpoint.device
        self._watch = watch
        self._encoder = PromptEncoder(checkpoint, pool.prompt_cache_entries)
        self._space = LatentSpace(checkpoint)
        self._drafting = LatentsPreparer(self._space, checkpoint.scheduler_config)
        self._passes = BatchExecutor(checkpoint, pool, watch)
        self.loras = LoraManager(checkpoint.lora_slots)
        self._tasks: list[RequestState] = []
        self._errands: deque[DeviceCall] = deque()
        self.device_lost = False

    @property
    def passes(self) -> int:
        """Times that the transformer ran."""
        return self._passes.batches

    @property
    def image_steps(self) -> int:
        """Steps of single images in those passes."""
        return self._passes.image_steps

    @property
    def busy(self) -> bool:
        return bool(self._tasks or self._errands)

    @property
    def images(self) -> int:
        """Images of the jobs that have not ended."""
        return sum(len(task.request.plan.seeds) for task in self._tasks if not task.ended)

    def add(self, tasks: Sequence[RequestState], errands: Sequence[DeviceCall]) -> None:
        """Takes on tasks, each younger than all before."""
        self._tasks = [*self._tasks, *tasks]
        self._errands.extend(errands)

    @torch.no_grad()
    def step(self) -> None:
        for part in (self._bring_loras, self._read_prompts, self._one_picture, self._one_errand, self._one_pass):
            self._let_go()
            part()
        self._let_go()

    def fail_all(self, error: EngineFailed) -> None:
        for task in self._tasks:
            if not task.ended:
                task.fail(error)
        self._let_go()
        for future, _ in self._errands:
            future.cancel()
        self._errands.clear()

    def _let_go(self) -> None:
        for task in self._tasks:
            if task.cancel_token.cancelled and not task.ended:
                task.cancel()
        for task in self._tasks:
            if task.ended and task.active_loras is not None:
                self.loras.release(task.active_loras)
        self._tasks = [task for task in self._tasks if not task.ended]

    def _bring_loras(self) -> None:
        """Jobs get their LoRAs by age, so that none waits for room which younger ones take, and one copy at most."""
        for task in self._tasks:
            if task.active_loras is None and not task.request.plan.loras:
                task.attach_loras(NO_LORAS)
        for task in [task for task in self._tasks if task.active_loras is None]:
            at_hand = self.loras.are_resident(task.request.plan.loras)
            self._attempt(task, WorkItem("lora"), partial(self._bring, task))
            if not at_hand:
                return

    def _bring(self, task: RequestState) -> None:
        task.attach_loras(self.loras.acquire(task.request.plan.loras, task.request.loras))

    def _read_prompts(self) -> None:
        for task in self._tasks:
            if task.prompt_embeds is None and task.active_loras is not None:
                self._read(task)

    def _read(self, task: RequestState) -> None:
        """Encodes the job's prompt; without a picture its images can begin."""

        def read() -> None:
            assert task.active_loras is not None
            task.prompt_embeds = self._encoder.encode(task.request.plan.prompt, task.active_loras)
            if task.request.image is None:
                task.images = self._drafting.prepare(task.request, task.prompt_embeds, task.active_loras, None)

        self._attempt(task, WorkItem("text"), read)

    def _one_picture(self) -> None:
        """The oldest job that has a picture to encode or to decode gets one done."""
        for task in self._tasks:
            if task.prompt_embeds is not None and task.images is None:
                self._encode(task)
                return
            finished = next((draft for draft in task.images or () if draft.finished), None)
            if finished is not None:
                self._decode(task, finished)
                return

    def _encode(self, task: RequestState) -> None:
        """Encodes the job's picture, so its images can begin."""

        def encode() -> None:
            assert task.active_loras is not None
            assert task.prompt_embeds is not None
            assert task.request.image is not None
            posterior = self._space.encode(task.request.image)
            task.images = self._drafting.prepare(task.request, task.prompt_embeds, task.active_loras, posterior)

        self._attempt(task, WorkItem("encode_image", pixels=task.pixels), encode)

    def _decode(self, task: RequestState, draft: ImageState) -> None:
        assert task.images is not None
        task.start()
        pixels = self._attempt(task, WorkItem("decode", pixels=task.pixels), lambda: self._pixels(task, draft))
        if pixels is None or task.cancel_token.cancelled:
            return
        task.images.remove(draft)
        task.emit(ImageReady(draft.index, partial(device.to_host, pixels)))
        if not task.images:
            task.finish()

    def _pixels(self, task: RequestState, draft: ImageState) -> Tensor:
        pixels = self._space.decode(draft.latents, draft.grid, task.size)
        if task.request.image is None or task.request.mask is None:
            return pixels
        return paste_kept_pixels(pixels, task.request.image, task.request.mask)

    def _attempt(self, task: RequestState, work: WorkItem, action: Callable[[], Result]) -> Result | None:
        """Does a piece of work for one job. If it fails, so has the job; what went wrong is in the log only."""
        begin = monotonic()
        try:
            with self._watch.track(work):
                result = action()
                device.synchronize(self._device)
        except ServiceError as error:
            task.fail(error)
            return None
        except Exception:
            _log.exception("%s failed, and its job with it", work)
            self._failed(task)
            return None
        task.record_time(work.kind, monotonic() - begin)
        return result

    def _one_errand(self) -> None:
        if not self._errands:
            return
        future, action = self._errands.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            with self._watch.track(WorkItem("other")):
                future.set_result(action())
        except Exception as error:
            future.set_exception(error)

    def _one_pass(self) -> None:
        for task in self._passes.run_next(self._tasks):
            self._failed(task)

    def _failed(self, task: RequestState) -> None:
        task.fail(EngineFailed())
        device.empty_cache(self._device)
        self.device_lost = self.device_lost or not device.is_responsive(self._device)
