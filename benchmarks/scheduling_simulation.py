"""Simulates the order of work within a replica on a virtual clock, with the engine's own choice of batches."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Literal, get_args

from serve.engine.batching import BatchCandidate, deadline_s, select_batch, select_batch_by_turns
from serve.engine.step_costs import RemainingWork, StepCosts

PolicyName = Literal["first_come", "turns", "always_batch", "deadline"]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
MAX_BATCH = 8


@dataclass(frozen=True)
class SimulatedDevice:
    """How long a device takes, by the side of a square image in pixels."""

    step_s: dict[int, float]
    """One step of one image."""
    batch_costs: dict[int, dict[int, float]]
    """A step by the number of images, in steps of one image. Sizes in between are interpolated."""
    decode_s: dict[int, float]

    def pass_s(self, side: int, images: int) -> float:
        costs = sorted(self.batch_costs[side].items())
        for (lower, lower_cost), (upper, upper_cost) in pairwise(costs):
            if lower <= images <= upper:
                share = (images - lower) / (upper - lower)
                return self.step_s[side] * (lower_cost + share * (upper_cost - lower_cost))
        raise ValueError(f"no cost for {images} images")


GPU = SimulatedDevice(
    step_s={256: 0.0155, 512: 0.040, 1024: 0.120, 1440: 0.260},
    batch_costs={
        256: {1: 1, 4: 1.3, 8: 2.5},
        512: {1: 1, 4: 3.3, 8: 6.5},
        1024: {1: 1, 4: 3.9, 8: 7.8},
        1440: {1: 1, 4: 3.95, 8: 7.9},
    },
    decode_s={256: 0.0025, 512: 0.010, 1024: 0.039, 1440: 0.077},
)
"""FLUX.1 on an H100: 1024 and its batches are measured (compiled prototypes in bf16), the rest is extrapolated."""
CPU = SimulatedDevice(
    step_s={256: 0.017, 512: 0.064, 1024: 0.265, 1440: 0.6},
    batch_costs={side: {1: 1, 8: 7.86} for side in (256, 512, 1024, 1440)},
    decode_s={256: 0.165, 512: 0.66, 1024: 2.64, 1440: 5.2},
)
"""The embedded model in float32 on one core of an EPYC with AVX2, where batches save almost nothing."""
DEVICES = {"gpu": GPU, "cpu": CPU}


@dataclass(frozen=True)
class Arrival:
    """A request of a workload."""

    side: int
    steps: int
    images: int
    arrival_s: float | None = None
    """None in a closed loop: the request arrives when an earlier one ends."""


@dataclass(frozen=True)
class WorkloadKind:
    """When requests arrive: all at once, at random with a load, or when an earlier one has ended."""

    load: float | None = None
    """Arriving work, in shares of what the device can do without batches."""
    in_flight: int | None = None
    """Number of clients of a closed loop."""


WORKLOADS = {
    "burst": WorkloadKind(),
    "open, load 0.6": WorkloadKind(load=0.6),
    "open, load 0.9": WorkloadKind(load=0.9),
    "closed, 8 in flight": WorkloadKind(in_flight=8),
    "closed, 16 in flight": WorkloadKind(in_flight=16),
}


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


def make_workload(kind: WorkloadKind, device: SimulatedDevice, requests: int, seed: int) -> list[Arrival]:
    """Requests of mixed sizes, steps and numbers of images. The same seed gives the same requests for every kind."""
    generator = random.Random(seed)
    shapes = [
        Arrival(
            side=generator.choices((256, 512, 1024, 1440), (3, 4, 4, 1))[0],
            steps=generator.choice((4, 8, 20, 28)),
            images=generator.choices((1, 2, 4), (6, 2, 2))[0],
        )
        for _ in range(requests)
    ]
    if kind.load is None:
        return shapes if kind.in_flight else [replace(shape, arrival_s=0.0) for shape in shapes]
    mean_s = sum(_alone_s(shape, device) for shape in shapes) / requests
    gaps_s = [generator.expovariate(kind.load / mean_s) for _ in shapes]
    return [replace(shape, arrival_s=at_s) for shape, at_s in zip(shapes, accumulate(gaps_s), strict=True)]


def _alone_s(shape: Arrival, device: SimulatedDevice) -> float:
    """The time of a request whose images run one after the other."""
    return shape.images * (shape.steps * device.step_s[shape.side] + device.decode_s[shape.side])
