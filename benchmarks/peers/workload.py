"""The requests of each scenario: equal for every server, and for every run with the same options."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

DEFAULT_SIDE = 512
DEFAULT_STEPS = 4
MIXED_SIZES = ((256, 256), (256, 256), (384, 256), (512, 512), (512, 512), (768, 512), (768, 768), (1024, 1024))
"""Chosen at random, so sizes listed twice are twice as frequent. All are multiples of the checkpoint's stride."""
MIXED_MAX_STEPS = 12
IN_FLIGHT = 8
CANCEL_AFTER_S = 1.0
GUIDANCE = 3.0
SEEDS_PER_ROUND = 10_000


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One request, with the names and meanings of the service's inputs."""

    prompt: str
    seed: int
    width: int = DEFAULT_SIDE
    height: int = DEFAULT_SIDE
    num_inference_steps: int = DEFAULT_STEPS
    num_outputs: int = 1
    output_format: str = "webp"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def batch_key(self) -> tuple[int, int, int, int]:
        """Requests with equal keys can share a call of a diffusers pipeline."""
        return self.width, self.height, self.num_inference_steps, self.num_outputs


@dataclass(frozen=True, slots=True)
class TimedRequest:
    """A request, and the seconds after which its client disconnects, if it does."""

    image: ImageRequest
    cancel_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """Requests that are sent in order, at most `in_flight` at a time."""

    name: str
    requests: tuple[TimedRequest, ...]
    in_flight: int


def group_by_key(requests: Sequence[ImageRequest]) -> list[list[int]]:
    """Positions of the requests that can share a call of the pipeline, in order of arrival."""
    groups: dict[tuple[int, int, int, int], list[int]] = {}
    for position, request in enumerate(requests):
        groups.setdefault(request.batch_key, []).append(position)
    return list(groups.values())


def make_scenarios(names: Iterable[str], number: int, scale: float) -> list[Scenario]:
    """The scenarios of one round. `scale` multiplies the numbers of requests; rounds differ in seeds and prompts."""
    return [SCENARIOS[name](name, number, scale) for name in names]


def _requests(number: int, count: int, scale: float, minimum: int) -> Iterator[ImageRequest]:
    first = number * SEEDS_PER_ROUND
    for seed in range(first, first + max(minimum, round(count * scale))):
        yield ImageRequest(prompt=f"a red sailboat, number {seed}", seed=seed)


def _one_at_a_time(name: str, number: int, scale: float) -> Scenario:
    return Scenario(name, _timed(_requests(number, 4, scale, 1)), in_flight=1)


def _equal(name: str, number: int, scale: float) -> Scenario:
    return Scenario(name, _timed(_requests(number, 16, scale, 2)), IN_FLIGHT)


def _mixed(name: str, number: int, scale: float) -> Scenario:
    generator = random.Random(number)
    requests = []
    for request in _requests(number, 16, scale, 3):
        width, height = generator.choice(MIXED_SIZES)
        steps = generator.randint(1, MIXED_MAX_STEPS)
        requests.append(replace(request, width=width, height=height, num_inference_steps=steps))
    return Scenario(name, _timed(requests), IN_FLIGHT)


def _four_outputs(name: str, number: int, scale: float) -> Scenario:
    requests = (replace(request, num_outputs=4) for request in _requests(number, 2, scale, 1))
    return Scenario(name, _timed(requests), in_flight=1)


def _half_canceled(name: str, number: int, scale: float) -> Scenario:
    """Every other client disconnects, starting with the first; the last one stays."""
    requests = list(_requests(number, 12, scale, 2))
    requests = requests[: len(requests) // 2 * 2]
    timed = (
        TimedRequest(request, CANCEL_AFTER_S if position % 2 == 0 else None)
        for position, request in enumerate(requests)
    )
    return Scenario(name, tuple(timed), in_flight=len(requests))


def _burst(name: str, number: int, scale: float) -> Scenario:
    small = (
        replace(request, width=256, height=256, num_inference_steps=1) for request in _requests(number, 24, scale, 4)
    )
    requests = _timed(small)
    return Scenario(name, requests, in_flight=len(requests))


def _timed(requests: Iterable[ImageRequest]) -> tuple[TimedRequest, ...]:
    return tuple(TimedRequest(request) for request in requests)


SCENARIOS: dict[str, Callable[[str, int, float], Scenario]] = {
    "alone": _one_at_a_time,
    "equal": _equal,
    "mixed": _mixed,
    "four_outputs": _four_outputs,
    "half_canceled": _half_canceled,
    "burst": _burst,
}
