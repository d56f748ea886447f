"""Estimates how long passes of the transformer and the VAE take, from measured times. Pure: no torch, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

CostKind = Literal["step", "decode", "encode_image"]

SMOOTHING = 0.2
"""Weight of a new time in the moving average of its shape."""
OPTIMISTIC_SHARE = 0.5
"""Expected cost of each further image of a batch until such a batch is measured, in costs of a single image. It is low,
so that batches are tried."""
MAX_AGE = 1000
"""Batches that were not measured in this many passes are tried again: what made them slow may have ended."""
_UNMEASURED_S_PER_TOKEN = 1e-4
"""Before the first measurement, only the ratios between sizes matter."""


@dataclass(frozen=True, slots=True)
class RemainingWork:
    """What is left of one request."""

    tokens: int
    """Of each image."""
    steps_left: tuple[int, ...]
    """Of each image that is not decoded."""
    needs_image_encoding: bool = False
    """Its input image is not encoded."""


@dataclass(slots=True)
class _Measurement:
    seconds: float
    count: int
    recorded_at: int


class StepCosts:
    """Seconds of one pass by its kind, tokens per image and number of images.

    The first time of a shape often includes one-time work, such as compilation, so it is replaced if the second is
    lower. From then on, the times are averaged.
    """

    def __init__(self) -> None:
        self._measured: dict[CostKind, dict[int, dict[int, _Measurement]]] = {kind: {} for kind in get_args(CostKind)}
        self._records = 0

    def clear(self) -> None:
        """Forgets all times."""
        for shapes in self._measured.values():
            shapes.clear()

    def record(self, kind: CostKind, tokens: int, seconds: float, images: int = 1) -> None:
        """Adds the measured time of one pass."""
        self._records += 1
        shapes = self._measured[kind].setdefault(tokens, {})
        previous = shapes.get(images)
        if previous is None or (images > 1 and self._is_old(previous)):
            shapes[images] = _Measurement(seconds, 1, self._records)
            return
        if previous.count == 1:
            previous.seconds = min(previous.seconds, seconds)
        else:
            previous.seconds += SMOOTHING * (seconds - previous.seconds)
        previous.count += 1
        previous.recorded_at = self._records

    def estimate_s(self, kind: CostKind, tokens: int, images: int = 1) -> float:
        """Expected seconds of one pass. Shapes that were not measured are estimated from similar ones."""
        single_s = self._single_s(kind, tokens)
        if images == 1:
            return single_s
        batches = self._batches(kind, tokens)
        if images in batches:
            return batches[images]
        return _estimate_batch({1: single_s} | batches, images)

    def remaining_s(self, work: RemainingWork, max_batch: int) -> float:
        """Expected seconds until a request is done, if nothing else runs."""
        together = min(max_batch, max(1, sum(1 for steps in work.steps_left if steps)))
        single_s = self.estimate_s("step", work.tokens)
        step_s = min(single_s, self.estimate_s("step", work.tokens, together) / together)
        decode_s = len(work.steps_left) * self.estimate_s("decode", work.tokens)
        encode_s = self.estimate_s("encode_image", work.tokens) if work.needs_image_encoding else 0.0
        return sum(work.steps_left) * step_s + decode_s + encode_s

    def _is_old(self, measurement: _Measurement) -> bool:
        return self._records - measurement.recorded_at > MAX_AGE

    def _batches(self, kind: CostKind, tokens: int) -> dict[int, float]:
        """Times of batches that count: measured at least twice, and recently."""
        shapes = self._measured[kind].get(tokens, {})
        return {
            images: measurement.seconds
            for images, measurement in shapes.items()
            if images > 1 and measurement.count > 1 and not self._is_old(measurement)
        }

    def _single_s(self, kind: CostKind, tokens: int) -> float:
        sizes = self._measured[kind]
        if 1 in sizes.get(tokens, {}):
            return sizes[tokens][1].seconds
        estimate_s = _estimate_size({size: shapes[1].seconds for size, shapes in sizes.items() if 1 in shapes}, tokens)
        for images, batch_s in self._batches(kind, tokens).items():
            estimate_s = min(max(estimate_s, batch_s / images), batch_s)
        return estimate_s


def _estimate_batch(batches: Mapping[int, float], images: int) -> float:
    """Between two measured batch sizes linear; beyond the largest, further images cost what they did on average."""
    single_s = batches[1]
    lower = max(size for size in batches if size < images)
    larger = [size for size in batches if size > images]
    if larger:
        return _interpolate(lower, batches[lower], min(larger), batches[min(larger)], images)
    further_s = OPTIMISTIC_SHARE * single_s if lower == 1 else max(0.0, (batches[lower] - single_s) / (lower - 1))
    return batches[lower] + (images - lower) * further_s


def _estimate_size(sizes: Mapping[int, float], tokens: int) -> float:
    """Between two measured sizes linear; outside of them, in proportion to the tokens."""
    if not sizes:
        return tokens * _UNMEASURED_S_PER_TOKEN
    for lower, upper in pairwise(sorted(sizes)):
        if lower <= tokens <= upper:
            return _interpolate(lower, sizes[lower], upper, sizes[upper], tokens)
    nearest = min(sizes, key=lambda size: abs(size - tokens))
    return sizes[nearest] * tokens / nearest


def _interpolate(lower: int, lower_s: float, upper: int, upper_s: float, at: int) -> float:
    return lower_s + (upper_s - lower_s) * (at - lower) / (upper - lower)
