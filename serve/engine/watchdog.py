"""Detects a hung engine thread.

Time limits are learned during warm-up: the slowest run of each kind of work, times `SLACK`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

SLACK = 40
"""How many times the learnt time is a hang: a busy neighbour on the same cores was measured to slow a step 35 times."""

WorkKind = Literal["lora", "text", "encode_image", "step", "decode", "other"]


@dataclass(frozen=True, slots=True)
class WorkItem:
    """A piece of work that the thread does in one go."""

    kind: WorkKind
    images: int = 1
    pixels: int = 1
    """Of one image."""

    def __str__(self) -> str:
        return f"{self.kind} of {self.images} x {self.pixels} pixels"


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """A moment of the thread."""

    alive: bool
    """The thread runs and its device answers."""
    work: WorkItem | None
    """None while it waits for work."""
    busy_s: float
    limit_s: float | None
    """None as long as nothing of this kind was learnt."""

    @property
    def healthy(self) -> bool:
        return self.alive and (self.limit_s is None or self.busy_s <= self.limit_s)


@dataclass(frozen=True, slots=True)
class _Measured:
    work: WorkItem
    seconds: float

    def limit_s(self, work: WorkItem) -> float:
        """Attention grows with the square of the pixels, everything else less."""
        images = max(1.0, work.images / self.work.images)
        pixels = max(1.0, work.pixels / self.work.pixels)
        return SLACK * self.seconds * images * pixels**2


class Watchdog:
    """One thread works under it, any thread may look."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._now: tuple[WorkItem, float] | None = None
        self._learning = False
        self._slowest: dict[WorkKind, _Measured] = {}

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """Work that is done meanwhile shows how long each kind takes."""
        self._learning = True
        try:
            yield
        finally:
            self._learning = False

    @contextmanager
    def track(self, work: WorkItem) -> Iterator[None]:
        begin = self._clock()
        self._now = (work, begin)
        try:
            yield
        finally:
            self._now = None
            if self._learning:
                self._learn(_Measured(work, self._clock() - begin))

    def health(self, alive: bool) -> EngineHealth:
        now = self._now
        if now is None:
            return EngineHealth(alive, None, 0.0, None)
        work, begin = now
        learnt = self._slowest.get(work.kind)
        return EngineHealth(alive, work, self._clock() - begin, learnt.limit_s(work) if learnt else None)

    def _learn(self, measured: _Measured) -> None:
        known = self._slowest.get(measured.work.kind)
        if known is None or measured.seconds > known.seconds:
            self._slowest[measured.work.kind] = measured
