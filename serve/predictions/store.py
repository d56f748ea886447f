"""Where records are kept: `PredictionStore` is what the service knows, `MemoryStore` the memory of one process.

A change is given as a function from record to record, so that a store shared by several processes can apply it again
when another change came first. Old records leave by themselves: how is each store's own affair.
"""

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import dropwhile, islice
from typing import Protocol

from serve.errors import NotFound
from serve.predictions.prediction import Prediction, utc_now

PredictionUpdate = Callable[[Prediction], Prediction]


class PredictionStore(Protocol):
    """Every method but `finish` raises `NotFound` for an unknown or forgotten record."""

    async def create(self, prediction: Prediction) -> None:
        """Keeps a new record."""

    async def get(self, prediction_id: str) -> Prediction: ...

    async def page(self, before: str | None, limit: int) -> list[Prediction]:
        """The newest records first; those made before the record `before`, when one is named."""

    async def claim(self, prediction_id: str) -> Prediction | None:
        """The record, for the one caller who may run it; None when somebody has claimed it, or it has ended."""

    async def update(self, prediction_id: str, change: PredictionUpdate) -> Prediction:
        """Applies a change that does not end the record, and returns what is kept then."""

    async def finish(self, prediction_id: str, change: PredictionUpdate) -> bool:
        """Applies a change that ends the record. False when it had ended before, or even left: the first end stands."""

    async def changed(self, seen: Prediction) -> Prediction:
        """Waits until the record is past the revision of `seen`; at once when `seen` has ended."""


class _Entry:
    def __init__(self, prediction: Prediction) -> None:
        self.prediction = prediction
        self.claimed = False
        self.next_change = asyncio.Event()


class MemoryStore:
    """At most about `max_records` records, none longer than `max_age_s` after its end. Running ones never leave."""

    def __init__(self, max_records: int, max_age_s: float, clock: Callable[[], datetime] = utc_now) -> None:
        self._max_records = max_records
        self._max_age = timedelta(seconds=max_age_s)
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._ended: dict[str, datetime] = {}  # in the order of their ends

    async def create(self, prediction: Prediction) -> None:
        self._entries[prediction.id] = _Entry(prediction)
        self._forget_old()

    async def get(self, prediction_id: str) -> Prediction:
        return self._entry(prediction_id).prediction

    async def page(self, before: str | None, limit: int) -> list[Prediction]:
        newest_first: Iterator[_Entry] = reversed(self._entries.values())
        if before is not None:
            last = self._entry(before)
            newest_first = dropwhile(lambda entry: entry is not last, newest_first)
            next(newest_first)
        return [entry.prediction for entry in islice(newest_first, limit)]

    async def claim(self, prediction_id: str) -> Prediction | None:
        entry = self._entry(prediction_id)
        if entry.claimed or entry.prediction.ended:
            return None
        entry.claimed = True
        return entry.prediction

    async def update(self, prediction_id: str, change: PredictionUpdate) -> Prediction:
        entry = self._entry(prediction_id)
        self._keep(entry, change(entry.prediction))
        return entry.prediction

    async def finish(self, prediction_id: str, change: PredictionUpdate) -> bool:
        entry = self._entries.get(prediction_id)
        if entry is None or entry.prediction.ended:
            return False
        self._keep(entry, change(entry.prediction))
        self._ended[prediction_id] = self._clock()
        return True

    async def changed(self, seen: Prediction) -> Prediction:
        entry = self._entry(seen.id)
        while entry.prediction.revision <= seen.revision and not seen.ended:
            await entry.next_change.wait()
        return entry.prediction

    def _entry(self, prediction_id: str) -> _Entry:
        self._forget_old()
        entry = self._entries.get(prediction_id)
        if entry is None:
            raise NotFound(f"there is no prediction {prediction_id[:64]!r}; it may have expired")
        return entry

    def _keep(self, entry: _Entry, prediction: Prediction) -> None:
        if prediction is entry.prediction:
            return
        entry.prediction = prediction
        entry.next_change.set()
        entry.next_change = asyncio.Event()

    def _forget_old(self) -> None:
        oldest_kept = self._clock() - self._max_age
        while self._ended:
            first, ended_at = next(iter(self._ended.items()))
            if ended_at >= oldest_kept and len(self._entries) <= self._max_records:
                return
            del self._ended[first], self._entries[first]
