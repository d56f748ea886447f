"""Wall time of the stages of a start-up."""

import time
from collections.abc import Callable


class StageTimes:
    """Wall time of the stages of a start-up, for the log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_s = clock()
        self._stages: list[str] = []

    def end(self, stage: str) -> None:
        """Ends the current stage, which began when the last one ended."""
        now_s = self._clock()
        self._stages.append(f"{stage} {now_s - self._last_s:.1f} s")
        self._last_s = now_s

    def __str__(self) -> str:
        return ", ".join(self._stages)
