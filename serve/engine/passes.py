"""Passes of the transformer: who shares the next one, and what becomes of it. Knows no prompt, no VAE and no thread."""

import logging
from collections.abc import Sequence

from torch import Tensor

from serve.engine import device
from serve.engine.batching import Waiting, next_turn
from serve.engine.checkpoint import Checkpoint
from serve.engine.draft import Draft, Group
from serve.engine.stepper import Stepper
from serve.engine.task import Task
from serve.engine.watch import Watch, Work
from serve.events import Stepped
from serve.settings import PoolSettings

Member = tuple[Task, Draft]
_log = logging.getLogger(__name__)


class Passes:
    """One pass at a time, over whatever images there are then."""

    def __init__(self, checkpoint: Checkpoint, pool: PoolSettings, watch: Watch) -> None:
        self._stepper = Stepper(checkpoint)
        self._device = checkpoint.device
        self._max_batch = 1 if pool.batch_alone else pool.max_batch
        self._mix_loras = pool.mix_loras
        self._watch = watch
        self._groups: tuple[Group, ...] = ()
        self.done = 0
        """Passes so far; one that was tried again in parts counts by its parts."""
        self.image_steps = 0

    def one(self, tasks: Sequence[Task]) -> list[Task]:
        """Steps the images whose turn it is. Returns the tasks of those that cannot be stepped."""
        members = {
            (task.number, draft.image): (task, draft)
            for task in tasks
            for draft in task.drafts or ()
            if not draft.finished
        }
        waiting = [Waiting(task.number, draft.image, self._group(draft)) for task, draft in members.values()]
        turn = next_turn(waiting, self._groups, self._max_batch)
        self._groups = turn.groups
        failed: list[Task] = []
        self._pass([members[image.request, image.image] for image in turn.batch], failed)
        return failed

    def _group(self, draft: Draft) -> Group:
        return draft.group if self._mix_loras else draft.group._replace(loras=draft.mix.scales)

    def _pass(self, members: Sequence[Member], failed: list[Task]) -> None:
        """Steps `members` together; if that fails, in halves, until it is known who fails alone."""
        members = [(task, draft) for task, draft in members if task not in failed]
        if not members:
            return
        for task, _ in members:
            task.start()
        moved = self._try_step(members)
        if moved is not None:
            self._moved(members, moved)
        elif len(members) == 1:
            failed.append(members[0][0])
        else:
            device.give_back_memory(self._device)
            middle = len(members) // 2
            self._pass(members[:middle], failed)
            self._pass(members[middle:], failed)

    def _try_step(self, members: Sequence[Member]) -> list[Tensor] | None:
        """The latents that each has after its step, or None. Holds on to nothing of a failure: that may be memory."""
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
        self.done += 1
        self.image_steps += len(members)
        for task in dict.fromkeys(task for task, _ in members):
            task.shared_pass(len(members))
        for (task, draft), latents in zip(members, moved, strict=True):
            draft.latents = latents
            draft.done += 1
            task.tell(Stepped(draft.image, draft.done, draft.schedule.steps))
