"""Wall time of the stages of a start-up."""

import time
from collections.abc import Callable


class StageTimes:
    """Wall time of the stages of a start-up, for the log and for metrics."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_s = clock()
        self.seconds: dict[str, float] = {}
        """By stage, in order."""

    def end(self, stage: str) -> None:
        """Ends the current stage, which began when the last one ended."""
        now_s = self._clock()
        self.seconds[stage] = now_s - self._last_s
        self._last_s = now_s

    def __str__(self) -> str:
        return ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items())
