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
from serve.engine.denoiser import Passes
from serve.engine.latents import LatentSpace, paste_kept
from serve.engine.lora_manager import NO_LORAS, Adapters
from serve.engine.prompt_encoder import TextEncoder
from serve.engine.request import Pixels
from serve.engine.request_state import Draft, Drafting, Task
from serve.engine.watchdog import Watch, Work
from serve.errors import EngineFailed, ServiceError
from serve.settings import PoolSettings

Result = TypeVar("Result")
Errand = tuple["Future[Any]", Callable[[], Any]]
"""Something else that needs the device, such as a safety model, and where its result goes."""
_log = logging.getLogger(__name__)


class Loop:
    """The jobs in work, and the parts of a checkpoint that work on them."""

    def __init__(self, checkpoint: Checkpoint, pool: PoolSettings, watch: Watch) -> None:
        self._device = checkpoint.device
        self._watch = watch
        self._encoder = TextEncoder(checkpoint, pool.prompt_cache_entries)
        self._space = LatentSpace(checkpoint)
        self._drafting = Drafting(self._space, checkpoint.scheduler_config)
        self._passes = Passes(checkpoint, pool, watch)
        self.adapters = Adapters(checkpoint.low_rank)
        self._tasks: list[Task] = []
        self._errands: deque[Errand] = deque()
        self.device_lost = False

    @property
    def passes(self) -> int:
        """Times that the transformer ran."""
        return self._passes.done

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
        return sum(len(task.job.plan.seeds) for task in self._tasks if not task.ended)

    def admit(self, tasks: Sequence[Task], errands: Sequence[Errand]) -> None:
        """Takes on tasks, each younger than all before."""
        self._tasks = [*self._tasks, *tasks]
        self._errands.extend(errands)

    @torch.no_grad()
    def round(self) -> None:
        for part in (self._bring_loras, self._read_prompts, self._one_picture, self._one_errand, self._one_pass):
            self._let_go()
            part()
        self._let_go()

    def end_all(self, error: EngineFailed) -> None:
        for task in self._tasks:
            if not task.ended:
                task.fail(error)
        self._let_go()
        for future, _ in self._errands:
            future.cancel()
        self._errands.clear()

    def _let_go(self) -> None:
        for task in self._tasks:
            if task.ticket.left and not task.ended:
                task.leave()
        for task in self._tasks:
            if task.ended and task.mix is not None:
                self.adapters.leave(task.mix)
        self._tasks = [task for task in self._tasks if not task.ended]

    def _bring_loras(self) -> None:
        """Jobs get their LoRAs by age, so that none waits for room which younger ones take, and one copy at most."""
        for task in self._tasks:
            if task.mix is None and not task.job.plan.loras:
                task.equip(NO_LORAS)
        for task in [task for task in self._tasks if task.mix is None]:
            at_hand = self.adapters.hold(task.job.plan.loras)
            self._attempt(task, Work("lora"), partial(self._bring, task))
            if not at_hand:
                return

    def _bring(self, task: Task) -> None:
        task.equip(self.adapters.take(task.job.plan.loras, task.job.loras))

    def _read_prompts(self) -> None:
        for task in self._tasks:
            if task.text is None and task.mix is not None:
                self._read(task)

    def _read(self, task: Task) -> None:
        """Encodes the job's prompt; without a picture its images can begin."""

        def read() -> None:
            assert task.mix is not None
            task.text = self._encoder.encode(task.job.plan.prompt, task.mix)
            if task.job.picture is None:
                task.drafts = self._drafting.begin(task.job, task.text, task.mix, None)

        self._attempt(task, Work("text"), read)

    def _one_picture(self) -> None:
        """The oldest job that has a picture to encode or to decode gets one done."""
        for task in self._tasks:
            if task.text is not None and task.drafts is None:
                self._encode(task)
                return
            finished = next((draft for draft in task.drafts or () if draft.finished), None)
            if finished is not None:
                self._decode(task, finished)
                return

    def _encode(self, task: Task) -> None:
        """Encodes the job's picture, so its images can begin."""

        def encode() -> None:
            assert task.mix is not None
            assert task.text is not None
            assert task.job.picture is not None
            posterior = self._space.encode(task.job.picture)
            task.drafts = self._drafting.begin(task.job, task.text, task.mix, posterior)

        self._attempt(task, Work("encode_image", pixels=task.pixels), encode)

    def _decode(self, task: Task, draft: Draft) -> None:
        assert task.drafts is not None
        task.start()
        pixels = self._attempt(task, Work("decode", pixels=task.pixels), lambda: self._pixels(task, draft))
        if pixels is None or task.ticket.left:
            return
        task.drafts.remove(draft)
        task.tell(Pixels(draft.image, partial(device.to_host, pixels)))
        if not task.drafts:
            task.finish()

    def _pixels(self, task: Task, draft: Draft) -> Tensor:
        pixels = self._space.decode(draft.latents, draft.grid, task.size)
        if task.job.picture is None or task.job.mask is None:
            return pixels
        return paste_kept(pixels, task.job.picture, task.job.mask)

    def _attempt(self, task: Task, work: Work, action: Callable[[], Result]) -> Result | None:
        """Does a piece of work for one job. If it fails, so has the job; what went wrong is in the log only."""
        begin = monotonic()
        try:
            with self._watch.during(work):
                result = action()
                device.finish(self._device)
        except ServiceError as error:
            task.fail(error)
            return None
        except Exception:
            _log.exception("%s failed, and its job with it", work)
            self._failed(task)
            return None
        task.spend(work.kind, monotonic() - begin)
        return result

    def _one_errand(self) -> None:
        if not self._errands:
            return
        future, action = self._errands.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            with self._watch.during(Work("other")):
                future.set_result(action())
        except Exception as error:
            future.set_exception(error)

    def _one_pass(self) -> None:
        for task in self._passes.one(self._tasks):
            self._failed(task)

    def _failed(self, task: Task) -> None:
        task.fail(EngineFailed())
        device.give_back_memory(self._device)
        self.device_lost = self.device_lost or not device.answers(self._device)
