"""Decides which request of a replica is worked on next, and which images share the next batch."""

from collections.abc import Callable, Sequence
from typing import Protocol

from serve.engine.batching import BatchCandidate, deadline_s, select_batch, select_batch_by_turns
from serve.engine.latents import LatentGrid
from serve.engine.request_state import BatchKey, RequestState
from serve.engine.step_costs import RemainingWork, StepCosts
from serve.model_specs import Size
from serve.settings import PoolSettings

Batch = Sequence[BatchCandidate[BatchKey]]


class WorkOrder(Protocol):
    """An order of work. Requests are passed in order of arrival."""

    batch_follows_vae: bool
    """A batch runs in the same iteration as VAE work."""

    def deadline_s(self, request: RequestState) -> float:
        """When the request is due; 0 if the order has no deadlines."""

    def next_for_vae(self, requests: Sequence[RequestState]) -> RequestState | None:
        """The request whose image is encoded or decoded before the next batch."""

    def select(self, candidates: Batch) -> Batch:
        """The images of the next batch."""


class DeadlineOrder:
    """The request with the earliest deadline first, be it in a batch, or in the VAE."""

    batch_follows_vae = False

    def __init__(self, costs: StepCosts, max_batch: int, grid: Callable[[Size], LatentGrid]) -> None:
        self._costs = costs
        self._max_batch = max_batch
        self._grid = grid

    def deadline_s(self, request: RequestState) -> float:
        remaining_s = self._costs.remaining_s(self._remaining_work(request), self._max_batch)
        return deadline_s(request.submitted_s, remaining_s)

    def next_for_vae(self, requests: Sequence[RequestState]) -> RequestState | None:
        ready = [request for request in requests if request.encoded_prompt is not None]
        first = min(ready, key=lambda request: (self.deadline_s(request), request.number), default=None)
        return first if first is not None and first.has_vae_work else None

    def select(self, candidates: Batch) -> Batch:
        return select_batch(candidates, self._step_s, self._max_batch)

    def _step_s(self, key: BatchKey, images: int) -> float:
        return self._costs.estimate_s("step", key.grid.tokens, images)

    def _remaining_work(self, request: RequestState) -> RemainingWork:
        parameters = request.parameters
        tokens = self._grid(parameters.size).tokens
        if request.images is not None:
            return RemainingWork(tokens, tuple(image.schedule.steps - image.step for image in request.images))
        steps = round(parameters.steps * (1.0 if parameters.strength is None else parameters.strength))
        return RemainingWork(tokens, (steps,) * len(parameters.seeds), parameters.image is not None)


class TurnsOrder:
    """Sizes advance alternately. One image is encoded or decoded between two batches, oldest request first."""

    batch_follows_vae = True

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._next_keys: tuple[BatchKey, ...] = ()

    def deadline_s(self, request: RequestState) -> float:
        return 0.0

    def next_for_vae(self, requests: Sequence[RequestState]) -> RequestState | None:
        return next((request for request in requests if request.has_vae_work), None)

    def select(self, candidates: Batch) -> Batch:
        batch = select_batch_by_turns(candidates, self._next_keys, self._max_batch)
        self._next_keys = batch.next_keys
        return batch.candidates


def make_work_order(pool: PoolSettings, costs: StepCosts, grid: Callable[[Size], LatentGrid]) -> WorkOrder:
    """The order that the pool's settings name. `grid` gives the tokens of an image size."""
    max_batch = 1 if pool.disable_batching else pool.max_batch
    return TurnsOrder(max_batch) if pool.scheduling_policy == "turns" else DeadlineOrder(costs, max_batch, grid)
