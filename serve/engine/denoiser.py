"""Runs denoising steps for batches of images."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from serve.engine import device
from serve.engine.batching import PendingImage, select_batch
from serve.engine.checkpoint import Checkpoint
from serve.engine.request_state import BatchKey, ImageState, InpaintLatents, RequestState, add_noise
from serve.engine.watchdog import Watchdog, WorkItem
from serve.events import StepDone
from serve.settings import PoolSettings


def batch_invariant(device: torch.device) -> AbstractContextManager[Any]:
    """Within it, each image's linears on `device` give the bits that they give alone.

    On a GPU it does nothing: there, one product for a whole batch is what batching is for, and libraries choose their
    kernels by its size.
    """
    return _LinearsImageByImage() if device.type == "cpu" else nullcontext()


class _LinearsImageByImage(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is linear and args[0].shape[0] > 1:
            images, *weights = args
            return torch.cat([linear(image, *weights, **kwargs or {}) for image in images.split(1)])
        return func(*args, **kwargs or {})


_TIME_UNIT = 1000
"""The transformer multiplies its times by this; schedules count in the product."""


class Denoiser:
    """The transformer of one checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._transformer = checkpoint.transformer
        self._low_rank = checkpoint.lora_slots
        self._guided = checkpoint.guidance_embeds
        self._device = checkpoint.device

    @torch.no_grad()
    def step(self, drafts: list[ImageState]) -> list[Tensor]:
        """The latents of each draft after its next step. All must have the same grid and text length."""
        latents = torch.cat([draft.latents for draft in drafts])
        velocity = self._velocity(latents, drafts)
        # diffusers multiplies in the transformer's dtype, so the width of the step is rounded to it.
        width = self._numbers([draft.sigmas.sigma_delta(draft.step) for draft in drafts]).to(velocity.dtype)
        moved = (latents.float() + width[:, None, None] * velocity).to(velocity.dtype)
        return [
            after if draft.inpaint is None else _keep(after, draft.inpaint, draft.sigmas.sigmas[draft.step + 1])
            for draft, after in zip(drafts, moved.chunk(len(drafts)), strict=True)
        ]

    def _velocity(self, latents: Tensor, drafts: list[ImageState]) -> Tensor:
        times = self._numbers([draft.sigmas.timesteps[draft.step] for draft in drafts])
        guidance = self._numbers([draft.guidance for draft in drafts]) if self._guided else None
        embeddings = torch.cat([draft.prompt_embeds.prompt_embeds for draft in drafts])
        invariant = batch_invariant(self._device) if len(drafts) > 1 else nullcontext()
        with invariant, self._low_rank.apply([draft.active_loras.selection for draft in drafts]):
            velocity: Tensor = self._transformer(
                hidden_states=latents,
                timestep=times.to(latents.dtype) / _TIME_UNIT,
                guidance=guidance,
                pooled_projections=torch.cat([draft.prompt_embeds.pooled_prompt_embeds for draft in drafts]),
                encoder_hidden_states=embeddings,
                txt_ids=drafts[0].img_ids.new_zeros(embeddings.shape[1], 3),
                img_ids=drafts[0].img_ids,
                return_dict=False,
            )[0]
        return velocity

    def _numbers(self, numbers: list[float]) -> Tensor:
        return torch.tensor(numbers, device=self._device, dtype=torch.float32)


def _keep(latents: Tensor, original: InpaintLatents, sigma: float) -> Tensor:
    """`latents` where the mask repaints, elsewhere the original at the noise of the step that comes next."""
    kept = add_noise(original.latents, original.noise, sigma) if sigma else original.latents
    return (1 - original.mask) * kept + original.mask * latents


Member = tuple[RequestState, ImageState]
_log = logging.getLogger(__name__)


class BatchExecutor:
    """One pass at a time, over whatever images there are then."""

    def __init__(self, checkpoint: Checkpoint, pool: PoolSettings, watch: Watchdog) -> None:
        self._stepper = Denoiser(checkpoint)
        self._device = checkpoint.device
        self._max_batch = 1 if pool.disable_batching else pool.max_batch
        self._mix_loras = pool.batch_across_loras
        self._watch = watch
        self._groups: tuple[BatchKey, ...] = ()
        self.batches = 0
        """Passes so far; one that was tried again in parts counts by its parts."""
        self.image_steps = 0

    def run_next(self, tasks: Sequence[RequestState]) -> list[RequestState]:
        """Steps the images whose turn it is. Returns the tasks of those that cannot be stepped."""
        members = {
            (task.number, draft.index): (task, draft)
            for task in tasks
            for draft in task.images or ()
            if not draft.finished
        }
        waiting = [PendingImage(task.number, draft.index, self._group(draft)) for task, draft in members.values()]
        turn = select_batch(waiting, self._groups, self._max_batch)
        self._groups = turn.next_keys
        failed: list[RequestState] = []
        self._pass([members[image.request, image.image] for image in turn.images], failed)
        return failed

    def _group(self, draft: ImageState) -> BatchKey:
        return draft.batch_key if self._mix_loras else draft.batch_key._replace(loras=draft.active_loras.scales)

    def _pass(self, members: Sequence[Member], failed: list[RequestState]) -> None:
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
            device.empty_cache(self._device)
            middle = len(members) // 2
            self._pass(members[:middle], failed)
            self._pass(members[middle:], failed)

    def _try_step(self, members: Sequence[Member]) -> list[Tensor] | None:
        """The latents that each has after its step, or None. Holds on to nothing of a failure: that may be memory."""
        task, _ = members[0]
        work = WorkItem("step", images=len(members), pixels=task.pixels)
        try:
            with self._watch.track(work):
                moved = self._stepper.step([draft for _, draft in members])
                device.synchronize(self._device)
        except Exception:
            _log.exception("%s failed%s", work, ", it is tried again in halves" if len(members) > 1 else "")
            return None
        return moved

    def _moved(self, members: Sequence[Member], moved: Sequence[Tensor]) -> None:
        self.batches += 1
        self.image_steps += len(members)
        for task in dict.fromkeys(task for task, _ in members):
            task.record_batch(len(members))
        for (task, draft), latents in zip(members, moved, strict=True):
            draft.latents = latents
            draft.step += 1
            task.emit(StepDone(draft.index, draft.step, draft.sigmas.steps))
