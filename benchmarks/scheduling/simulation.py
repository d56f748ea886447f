"""Simulates the order of work within a replica on a virtual clock, with the engine's own choice of batches."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from benchmarks.scheduling.workloads import Arrival, SimulatedDevice
from serve.engine.batching import BatchCandidate, deadline_s, select_batch, select_batch_by_turns
from serve.engine.step_costs import RemainingWork, StepCosts

PolicyName = Literal["first_come", "turns", "always_batch", "deadline"]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
MAX_BATCH = 8


@dataclass
class SimulatedRequest:
    """State of a request."""

    number: int
    arrival: Arrival
    arrival_s: float
    steps_left: dict[int, int] = field(init=False)
    """Of each image that is not decoded."""
    end_s: float = 0.0

    def __post_init__(self) -> None:
        self.steps_left = dict.fromkeys(range(self.arrival.images), self.arrival.steps)

    @property
    def tokens(self) -> int:
        return (self.arrival.side // 16) ** 2

    @property
    def finished_image(self) -> int | None:
        """An image to decode."""
        return next((image for image, steps in self.steps_left.items() if not steps), None)


Batch = Sequence[BatchCandidate[int]]


class Simulation:
    """Runs a workload to its end. One pass or decode at a time; requests arrive in between."""

    def __init__(
        self, policy: PolicyName, device: SimulatedDevice, workload: Sequence[Arrival], in_flight: int | None = None
    ) -> None:
        """`in_flight` is the number of clients of a closed loop, each with one request at a time."""
        self._policy = policy
        self._device = device
        self._waiting = list(enumerate(workload))
        self._in_flight = in_flight
        self._active: list[SimulatedRequest] = []
        self._costs = StepCosts()
        self._next_keys: tuple[int, ...] = ()
        self.now_s = 0.0
        self.ended: list[SimulatedRequest] = []
        for side in device.step_s:
            self._costs.record("step", (side // 16) ** 2, device.pass_s(side, 1))
            self._costs.record("decode", (side // 16) ** 2, device.decode_s[side])

    @property
    def latencies_s(self) -> list[float]:
        return sorted(request.end_s - request.arrival_s for request in self.ended)

    def run(self) -> "Simulation":
        while self._active or self._waiting:
            self._admit()
            if not self._active:
                _, arrival = self._waiting[0]
                assert arrival.arrival_s is not None
                self.now_s = arrival.arrival_s
            elif self._policy in ("deadline", "first_come"):
                self._run_most_urgent()
            else:
                self._run_round()
        return self

    def _admit(self) -> None:
        while self._waiting:
            number, arrival = self._waiting[0]
            has_place = self._in_flight is None or len(self._active) < self._in_flight
            arrival_s = self.now_s if arrival.arrival_s is None else arrival.arrival_s
            if not has_place or arrival_s > self.now_s:
                return
            self._active.append(SimulatedRequest(number, arrival, arrival_s))
            del self._waiting[0]

    def _run_most_urgent(self) -> None:
        """One decode or one batch, whichever the most urgent request needs."""
        request = min(self._active, key=self._urgency)
        if not self._decode(request):
            self._run_batch()

    def _run_round(self) -> None:
        """At most one decode, oldest request first, and one batch."""
        any(self._decode(request) for request in list(self._active))
        self._run_batch()

    def _urgency(self, request: SimulatedRequest) -> tuple[float, int]:
        return (self._deadline_s(request) if self._policy == "deadline" else 0.0, request.number)

    def _decode(self, request: SimulatedRequest) -> bool:
        """Decodes a finished image, if there is one."""
        image = request.finished_image
        if image is None:
            return False
        self.now_s += self._device.decode_s[request.arrival.side]
        del request.steps_left[image]
        if not request.steps_left:
            request.end_s = self.now_s
            self._active.remove(request)
            self.ended.append(request)
        return True

    def _run_batch(self) -> None:
        candidates = list(self._candidates())
        if not candidates:
            return
        batch = self._select(candidates)
        requests = {request.number: request for request in self._active}
        first = requests[batch[0].request_number]
        seconds = self._device.pass_s(first.arrival.side, len(batch))
        self.now_s += seconds
        self._costs.record("step", first.tokens, seconds, len(batch))
        for image in batch:
            requests[image.request_number].steps_left[image.image_index] -= 1

    def _candidates(self) -> Iterator[BatchCandidate[int]]:
        """Images with steps left. Their key is the number of their tokens."""
        for request in self._active:
            due_s = self._deadline_s(request)
            for image, steps in request.steps_left.items():
                if steps:
                    yield BatchCandidate(request.number, image, request.tokens, steps, due_s)

    def _select(self, candidates: Batch) -> Batch:
        if self._policy == "deadline":
            return select_batch(candidates, self._step_s, MAX_BATCH)
        if self._policy == "turns":
            turn = select_batch_by_turns(candidates, self._next_keys, MAX_BATCH)
            self._next_keys = turn.next_keys
            return turn.candidates
        if self._policy == "first_come":
            first = min(candidate.request_number for candidate in candidates)
            return [candidate for candidate in candidates if candidate.request_number == first][:MAX_BATCH]
        images = Counter(candidate.key for candidate in candidates)
        largest = max(images, key=lambda key: min(images[key], MAX_BATCH))
        return [candidate for candidate in candidates if candidate.key == largest][:MAX_BATCH]

    def _step_s(self, tokens: int, images: int) -> float:
        return self._costs.estimate_s("step", tokens, images)

    def _deadline_s(self, request: SimulatedRequest) -> float:
        work = RemainingWork(request.tokens, tuple(request.steps_left.values()))
        return deadline_s(request.arrival_s, self._costs.remaining_s(work, MAX_BATCH))
