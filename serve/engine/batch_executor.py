"""Selects batches and advances their images by one denoising step."""

import logging
from collections.abc import Callable, Sequence

from torch import Tensor

from serve.engine import device
from serve.engine.batching import BatchCandidate
from serve.engine.checkpoint import Checkpoint
from serve.engine.denoiser import Denoiser
from serve.engine.request_state import BatchKey, ImageState, RequestState
from serve.engine.step_costs import StepCosts
from serve.engine.watchdog import Watchdog, WorkItem
from serve.engine.work_order import WorkOrder
from serve.events import StepDone
from serve.settings import PoolSettings

_log = logging.getLogger(__name__)

BatchItem = tuple[RequestState, ImageState]


class BatchExecutor:
    """Selects the next batch and advances its images by one step. If the batch fails, the failing image is isolated."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        pool: PoolSettings,
        watchdog: Watchdog,
        order: WorkOrder,
        costs: StepCosts,
        clock: Callable[[], float],
    ) -> None:
        self._denoiser = Denoiser(checkpoint)
        self._device = checkpoint.device
        self._batch_across_loras = pool.batch_across_loras
        self._watchdog = watchdog
        self._order = order
        self._costs = costs
        self._clock = clock
        self.batches = 0
        """Completed batches; a failed batch that is retried in parts counts by its parts."""
        self.image_steps = 0
        """Steps of single images in those batches."""

    def run_next(self, requests: Sequence[RequestState]) -> list[RequestState]:
        """Runs the next batch. Returns the requests with an image that fails even alone."""
        members = {
            (request.number, image.index): (request, image)
            for request in requests
            for image in request.images or ()
            if not image.finished
        }
        batch = self._order.select([self._candidate(request, image) for request, image in members.values()])
        failed: list[RequestState] = []
        self._run([members[image.request_number, image.image_index] for image in batch], failed)
        return failed

    def _candidate(self, request: RequestState, image: ImageState) -> BatchCandidate[BatchKey]:
        return BatchCandidate(
            request_number=request.number,
            image_index=image.index,
            key=self._batch_key(image),
            steps_left=image.schedule.steps - image.step,
            deadline_s=self._order.deadline_s(request),
        )

    def _batch_key(self, image: ImageState) -> BatchKey:
        if self._batch_across_loras:
            return image.batch_key
        return image.batch_key._replace(loras=image.active_loras.scales)

    def _run(self, members: Sequence[BatchItem], failed: list[RequestState]) -> None:
        """Steps `members` together. If that fails, each half is tried, until single failing images are found."""
        members = [(request, image) for request, image in members if request not in failed]
        if not members:
            return
        for request, _ in members:
            request.start()
        latents = self._try_step(members)
        if latents is not None:
            self._advance(members, latents)
        elif len(members) == 1:
            failed.append(members[0][0])
        else:
            device.empty_cache(self._device)
            middle = len(members) // 2
            self._run(members[:middle], failed)
            self._run(members[middle:], failed)

    def _try_step(self, members: Sequence[BatchItem]) -> list[Tensor] | None:
        """The latents of each image after its step, or None. Keeps no reference to the error, which may hold memory."""
        request, first = members[0]
        work = WorkItem("step", images=len(members), pixels=request.pixels)
        start_s = self._clock()
        try:
            with self._watchdog.track(work):
                latents = self._denoiser.step([image for _, image in members])
                device.synchronize(self._device)
        except Exception:
            _log.exception("%s failed%s", work, "; it is retried in halves" if len(members) > 1 else "")
            return None
        self._costs.record("step", first.grid.tokens, self._clock() - start_s, len(members))
        return latents

    def _advance(self, members: Sequence[BatchItem], latents: Sequence[Tensor]) -> None:
        self.batches += 1
        self.image_steps += len(members)
        for request in dict.fromkeys(request for request, _ in members):
            request.record_batch(len(members))
        for (request, image), new_latents in zip(members, latents, strict=True):
            image.latents = new_latents
            image.step += 1
            request.emit(StepDone(image.index, image.step, image.schedule.steps))
