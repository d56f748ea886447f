"""Selects batches and advances their images by one denoising step."""

import logging
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from serve.engine import device
from serve.engine.batching import BatchCandidate
from serve.engine.checkpoint import Checkpoint
from serve.engine.denoiser import Denoiser
from serve.engine.latent_preview import LatentPreviewer, QueuedPreview
from serve.engine.request import PreviewReady
from serve.engine.request_state import BatchKey, ImageState, RequestState
from serve.engine.step_costs import StepCosts
from serve.engine.watchdog import Watchdog, WorkItem
from serve.engine.work_order import WorkOrder
from serve.events import StepDone
from serve.settings import PoolSettings

QUEUE_MARGIN_S = 0.002
"""The next pass is queued this much earlier than it has to be, because threads do not wake up on time."""
POLL_S = 0.005
"""How often a waiting thread checks whether a pass ended before its expected end."""
MAX_PASS_TIMES = 4096
"""Kept for the metrics; more than passes in the time between two readings."""
_log = logging.getLogger(__name__)

BatchItem = tuple[RequestState, ImageState]


class PassTime(NamedTuple):
    """How long the device computed a pass."""

    seconds: float
    images: int
    pixels: int
    """Of one image."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass of the transformer that the device computes."""

    members: Sequence[BatchItem]
    steps: Sequence[int]
    """The number of steps of each image after this pass."""
    work: WorkItem
    tokens: int
    queued_s: float
    start: device.DeviceEvent
    end: device.DeviceEvent
    previews: Sequence[QueuedPreview]


class BatchExecutor:
    """Advances the images of the next batch by one step. If the batch fails, the failing image is isolated.

    On a GPU with `run_ahead`, a pass is queued shortly before the previous one ends, so that the GPU does not wait for
    the CPU. The images of a queued pass have advanced already; its events follow when the GPU has computed it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        denoiser: Denoiser,
        previewer: LatentPreviewer,
        pool: PoolSettings,
        watchdog: Watchdog,
        order: WorkOrder,
        costs: StepCosts,
        clock: Callable[[], float],
    ) -> None:
        self.denoiser = denoiser
        self.previewer = previewer
        self._device = checkpoint.device
        self._run_ahead = pool.run_ahead and device.is_asynchronous(checkpoint.device)
        self._batch_across_loras = pool.batch_across_loras
        self._watchdog = watchdog
        self._order = order
        self._costs = costs
        self._clock = clock
        self._passes: deque[Pass] = deque()
        """Queued passes, oldest first."""
        self._ended_s = 0.0
        """When the last pass ended."""
        self._queue_times_s: deque[float] = deque(maxlen=9)
        """How long it took to queue each of the last passes."""
        self.batches = 0
        """Completed batches; a failed batch that is retried in parts counts by its parts."""
        self.image_steps = 0
        """Steps of single images in those batches."""
        self._pass_times: deque[PassTime] = deque(maxlen=MAX_PASS_TIMES)

    def run_next(self, requests: Sequence[RequestState]) -> list[RequestState]:
        """Runs the next batch, or queues it and waits for the previous one. Returns the requests that failed.

        These are requests with an image that fails even alone, or whose pass failed after it was queued.
        """
        members = {
            (request.number, image.index): (request, image)
            for request in requests
            for image in request.images or ()
            if not (image.finished or request.cancel_token.cancelled)
        }
        batch = self._order.select([self._candidate(request, image) for request, image in members.values()])
        previous = len(self._passes)
        failed: list[RequestState] = []
        self._run([members[image.request_number, image.image_index] for image in batch], failed)
        return failed + self._finish(previous if self._run_ahead else len(self._passes))

    def finish(self) -> list[RequestState]:
        """Waits until the device has computed all passes. Returns the requests that failed."""
        return self._finish(len(self._passes))

    def take_pass_times(self) -> list[PassTime]:
        """The passes that ended since the last call. May be called from any thread."""
        return [self._pass_times.popleft() for _ in range(len(self._pass_times))]

    def is_running(self, request: RequestState) -> bool:
        """Whether the device computes images of the request."""
        return any(member is request for each in self._passes for member, _ in each.members)

    @property
    def wait_s(self) -> float:
        """For how long, at least, no pass has to be queued, because the device is busy."""
        if not self._passes or self._passes[-1].end.query():
            return 0.0
        last = self._passes[-1]
        expected_s = self._costs.estimate_s("step", last.tokens, len(last.members))
        lead_s = statistics.median(self._queue_times_s) + QUEUE_MARGIN_S
        remaining_s = max(last.queued_s, self._ended_s) + expected_s - lead_s - self._clock()
        return min(max(0.0, remaining_s), POLL_S)

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
        if self._try_step(members):
            return
        if len(members) == 1:
            failed.append(members[0][0])
            return
        device.empty_cache(self._device)
        middle = len(members) // 2
        self._run(members[:middle], failed)
        self._run(members[middle:], failed)

    def _try_step(self, members: Sequence[BatchItem]) -> bool:
        """Queues a pass and advances its images. Keeps no reference to an error, which may hold memory."""
        request, image = members[0]
        work = WorkItem("step", images=len(members), pixels=request.pixels)
        queued_s = self._clock()
        try:
            with self._watchdog.track(work):
                start = device.record_event(self._device)
                latents = self.denoiser.step([image for _, image in members])
                previews = self.previewer.queue(members, latents)
                if not self._run_ahead:
                    device.synchronize(self._device)
                end = device.record_event(self._device)
        except Exception as error:
            _log.exception("%s failed%s", work, "; it is retried in halves" if len(members) > 1 else "")
            self.denoiser.free_memory_after(error)
            return False
        self._queue_times_s.append(self._clock() - queued_s)
        steps = _advance([image for _, image in members], latents)
        self._passes.append(Pass(members, steps, work, image.grid.tokens, queued_s, start, end, previews))
        return True

    def _finish(self, count: int) -> list[RequestState]:
        """Waits for the `count` oldest passes. Returns the requests of those that failed."""
        failed: list[RequestState] = []
        for _ in range(count):
            # It stays in the queue while it is computed, so that its requests count as running.
            first = self._passes[0]
            if self._wait_for(first):
                self._report(first)
            else:
                failed += [request for request, _ in first.members]
            self._passes.popleft()
        return list(dict.fromkeys(failed))

    def _wait_for(self, each: Pass) -> bool:
        start_s = max(each.queued_s, self._ended_s)
        try:
            with self._watchdog.track(each.work, start_s):
                each.end.synchronize()
                seconds = each.end.seconds_since(each.start)
        except Exception:
            _log.exception("%s failed on the device; its requests fail", each.work)
            return False
        self._ended_s = self._clock()
        self._costs.record("step", each.tokens, seconds, len(each.members))
        self._pass_times.append(PassTime(seconds, each.work.images, each.work.pixels))
        return True

    def _report(self, each: Pass) -> None:
        """Counts the pass and emits its events."""
        self.batches += 1
        self.image_steps += len(each.members)
        running = [
            (request, image, step)
            for (request, image), step in zip(each.members, each.steps, strict=True)
            if not request.ended
        ]
        for request in dict.fromkeys(request for request, *_ in running):
            request.record_batch(len(each.members))
        for request, image, step in running:
            request.emit(StepDone(image.index, step, image.schedule.steps))
        for request, image, step, pixels in each.previews:
            if not request.ended:
                request.emit(PreviewReady(image.index, step, image.schedule.steps, pixels.numpy()))


def _advance(images: Sequence[ImageState], latents: Sequence[Tensor]) -> list[int]:
    """Gives each image the latents after its next step. Returns the numbers of these steps."""
    for image, new_latents in zip(images, latents, strict=True):
        image.latents = new_latents
        image.step += 1
    return [image.step for image in images]
