"""Detects a hung engine thread.

Time limits are learned during warm-up: the slowest run of each kind of work, times `LIMIT_FACTOR`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

LIMIT_FACTOR = 40
"""Work that takes this many times longer than measured hangs. Another busy process made steps 35x slower."""

WorkKind = Literal["lora", "text", "encode_image", "step", "decode", "other"]


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One uninterrupted piece of work of the engine's thread."""

    kind: WorkKind
    images: int = 1
    pixels: int = 1
    """Of one image."""

    def __str__(self) -> str:
        return f"{self.kind} of {self.images} x {self.pixels} pixels"


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """State of the engine's thread at one moment."""

    alive: bool
    """The thread runs and its device responds."""
    work: WorkItem | None
    """None while the thread is idle."""
    busy_s: float
    limit_s: float | None
    """None if nothing of this kind was measured during warm-up."""

    @property
    def healthy(self) -> bool:
        return self.alive and (self.limit_s is None or self.busy_s <= self.limit_s)


@dataclass(frozen=True, slots=True)
class _Measurement:
    work: WorkItem
    duration_s: float

    def limit_s(self, work: WorkItem) -> float:
        """Time limit for `work`. It scales with the images and, as attention does, with the square of the pixels."""
        images = max(1.0, work.images / self.work.images)
        pixels = max(1.0, work.pixels / self.work.pixels)
        return LIMIT_FACTOR * self.duration_s * images * pixels**2


class Watchdog:
    """Tracks the work of one thread; any thread may read its health."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._current: tuple[WorkItem, float] | None = None
        self._warming_up = False
        self._slowest: dict[WorkKind, _Measurement] = {}

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Work within the block is measured."""
        self._warming_up = True
        try:
            yield
        finally:
            self._warming_up = False

    @contextmanager
    def track(self, work: WorkItem, start_s: float | None = None) -> Iterator[None]:
        """Reports `work` as the current work within the block. It runs since `start_s`, or since the block started."""
        start_s = self._clock() if start_s is None else start_s
        self._current = (work, start_s)
        try:
            yield
        finally:
            self._current = None
            if self._warming_up:
                self._keep_slowest(_Measurement(work, self._clock() - start_s))

    def health(self, alive: bool) -> EngineHealth:
        current = self._current
        if current is None:
            return EngineHealth(alive, None, 0.0, None)
        work, start_s = current
        slowest = self._slowest.get(work.kind)
        return EngineHealth(alive, work, self._clock() - start_s, slowest.limit_s(work) if slowest else None)

    def _keep_slowest(self, measurement: _Measurement) -> None:
        slowest = self._slowest.get(measurement.work.kind)
        if slowest is None or measurement.duration_s > slowest.duration_s:
            self._slowest[measurement.work.kind] = measurement
