"""The progress of a prediction as lines of its log, in the form of tqdm that official clients read."""

import time
from collections.abc import Callable

from tqdm import tqdm

from serve.events import Stepped


class Progress:
    """The images of a prediction share one bar: it stands where the image that is furthest behind stands."""

    def __init__(self, images: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._done = [0] * images
        self._clock = clock
        self._since_s = clock()

    def line(self, event: Stepped) -> str | None:
        """The new line of the log, or None when the bar did not move."""
        before = min(self._done)
        self._done[event.image] = event.done
        done = min(self._done)
        if done == before:
            return None
        return str(tqdm.format_meter(done, event.total, self._clock() - self._since_s))
