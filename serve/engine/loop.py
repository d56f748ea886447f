"""The work of the engine's thread, round by round. Knows the device and the jobs in work; no locks, no other thread.

A round lets go whom nobody waits for, brings at most one job's LoRAs, encodes the prompts that came, does at most one
picture's worth of VAE, and steps one batch. A piece of work that fails ends its own job and no other.
"""

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
from serve.engine.adapters import NO_LORAS, Adapters
from serve.engine.batching import Waiting, next_turn
from serve.engine.checkpoint import Checkpoint
from serve.engine.draft import Draft, Drafting, Group
from serve.engine.job import Pixels
from serve.engine.latents import LatentSpace, paste_kept
from serve.engine.stepper import Stepper
from serve.engine.task import Task
from serve.engine.text import TextEncoder
from serve.engine.watch import Watch, Work
from serve.errors import EngineFailed, ServiceError
from serve.events import Stepped
from serve.settings import PoolSettings

Result = TypeVar("Result")
Member = tuple[Task, Draft]
Errand = tuple["Future[Any]", Callable[[], Any]]
"""Something else that needs the device, such as a safety model, and where its result goes."""
_log = logging.getLogger(__name__)


class Loop:
    """The jobs in work, and the parts of a checkpoint that work on them."""

    def __init__(self, checkpoint: Checkpoint, pool: PoolSettings, watch: Watch) -> None:
        self._device = checkpoint.device
        self._watch = watch
        self._max_batch = 1 if pool.batch_alone else pool.max_batch
        self._mix_loras = pool.mix_loras
        self._adapters = Adapters(checkpoint.low_rank)
        self._encoder = TextEncoder(checkpoint, pool.prompt_cache_entries)
        self._space = LatentSpace(checkpoint)
        self._drafting = Drafting(self._space, checkpoint.scheduler_config)
        self._stepper = Stepper(checkpoint)
        self._tasks: list[Task] = []
        self._errands: deque[Errand] = deque()
        self._groups: tuple[Group, ...] = ()
        self.passes = 0
        self.image_steps = 0
        self.device_lost = False

    @property
    def busy(self) -> bool:
        return bool(self._tasks or self._errands)

    @property
    def loras(self) -> frozenset[str]:
        """The keys of LoRAs on the device."""
        return self._adapters.keys

    @property
    def lora_copies(self) -> int:
        return self._adapters.copies

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
        self._groups = ()
        self._errands.clear()

    def _let_go(self) -> None:
        for task in self._tasks:
            if task.ticket.left and not task.ended:
                task.leave()
        for task in self._tasks:
            if task.ended and task.mix is not None:
                self._adapters.leave(task.mix)
        self._tasks = [task for task in self._tasks if not task.ended]

    def _bring_loras(self) -> None:
        """Jobs get their LoRAs by age, so that none waits for room which younger ones take, and one copy at most."""
        for task in self._tasks:
            if task.mix is None and not task.job.plan.loras:
                task.equip(NO_LORAS)
        for task in [task for task in self._tasks if task.mix is None]:
            at_hand = self._adapters.hold(task.job.plan.loras)
            self._attempt(task, Work("lora"), partial(self._bring, task))
            if not at_hand:
                return

    def _bring(self, task: Task) -> None:
        task.equip(self._adapters.take(task.job.plan.loras, task.job.loras))

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
            assert task.text is not None
            assert task.mix is not None
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

    def _failed(self, task: Task) -> None:
        task.fail(EngineFailed())
        self.device_lost = self.device_lost or not device.answers(self._device)

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
        """Steps the images whose turn it is."""
        members = {
            (task.number, draft.image): (task, draft)
            for task in self._tasks
            for draft in task.drafts or ()
            if not draft.finished
        }
        waiting = [Waiting(task.number, draft.image, self._group(draft)) for task, draft in members.values()]
        turn = next_turn(waiting, self._groups, self._max_batch)
        self._groups = turn.groups
        self._pass([members[image.request, image.image] for image in turn.batch])

    def _group(self, draft: Draft) -> Group:
        return draft.group if self._mix_loras else draft.group._replace(loras=draft.mix.scales)

    def _pass(self, members: Sequence[Member]) -> None:
        """Steps `members` together; if that fails, in halves, until who fails alone is found and fails alone."""
        members = [(task, draft) for task, draft in members if not task.ended]
        if not members:
            return
        for task, _ in members:
            task.start()
        moved = self._try_step(members)
        if moved is not None:
            self._moved(members, moved)
        elif len(members) == 1:
            self._failed(members[0][0])
        else:
            device.give_back_memory(self._device)
            middle = len(members) // 2
            self._pass(members[:middle])
            self._pass(members[middle:])

    def _try_step(self, members: Sequence[Member]) -> list[Tensor] | None:
        task, _ = members[0]
        work = Work("step", images=len(members), pixels=task.pixels)
        try:
            with self._watch.during(work):
                moved = self._stepper.step([draft for _, draft in members])
                device.finish(self._device)
        except Exception:
            _log.exception("%s failed%s", work, ", it is tried again in halves" if len(members) > 1 else "")
            return None
        return moved

    def _moved(self, members: Sequence[Member], moved: Sequence[Tensor]) -> None:
        self.passes += 1
        self.image_steps += len(members)
        for task in dict.fromkeys(task for task, _ in members):
            task.shared_pass(len(members))
        for (task, draft), latents in zip(members, moved, strict=True):
            draft.latents = latents
            draft.done += 1
            task.tell(Stepped(draft.image, draft.done, draft.schedule.steps))
