"""Simulated devices, and workloads of mixed requests for them."""

import random
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise


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
