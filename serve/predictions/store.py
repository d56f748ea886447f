"""Stores prediction records: the `PredictionStore` interface and its in-memory implementation.

A change is a function from record to record, so that a store shared by several processes can apply it again if another
change came first.
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
    """Every method but `finish` raises `NotFound` for an unknown or expired record."""

    async def create(self, prediction: Prediction) -> None: ...

    async def get(self, prediction_id: str) -> Prediction: ...

    async def page(self, before: str | None, limit: int) -> list[Prediction]:
        """Up to `limit` records, newest first, older than the record `before` if given."""

    async def update(self, prediction_id: str, change: PredictionUpdate) -> Prediction:
        """Applies a change that does not end the record, and returns the stored record."""

    async def finish(self, prediction_id: str, change: PredictionUpdate) -> bool:
        """Applies a change that ends the record. Returns False if it had ended or expired before."""

    async def wait_for_change(self, seen: Prediction) -> Prediction:
        """The record once it is newer than `seen`; at once if `seen` has ended."""


class _Entry:
    def __init__(self, prediction: Prediction) -> None:
        self.prediction = prediction
        self.changed = asyncio.Event()
        """Set by the next change, which replaces it."""


class MemoryStore:
    """Keeps records in memory until `max_age_s` after their end; beyond `max_records`, the first ended are removed.

    Running predictions are never removed.
    """

    def __init__(self, max_records: int, max_age_s: float, clock: Callable[[], datetime] = utc_now) -> None:
        self._max_records = max_records
        self._max_age = timedelta(seconds=max_age_s)
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._ended_at: dict[str, datetime] = {}  # by time of end

    async def create(self, prediction: Prediction) -> None:
        self._entries[prediction.id] = _Entry(prediction)
        self._remove_old()

    async def get(self, prediction_id: str) -> Prediction:
        return self._get_entry(prediction_id).prediction

    async def page(self, before: str | None, limit: int) -> list[Prediction]:
        newest_first: Iterator[_Entry] = reversed(self._entries.values())
        if before is not None:
            start = self._get_entry(before)
            newest_first = dropwhile(lambda entry: entry is not start, newest_first)
            next(newest_first)
        return [entry.prediction for entry in islice(newest_first, limit)]

    async def update(self, prediction_id: str, change: PredictionUpdate) -> Prediction:
        entry = self._get_entry(prediction_id)
        self._replace(entry, change(entry.prediction))
        return entry.prediction

    async def finish(self, prediction_id: str, change: PredictionUpdate) -> bool:
        entry = self._entries.get(prediction_id)
        if entry is None or entry.prediction.ended:
            return False
        self._replace(entry, change(entry.prediction))
        self._ended_at[prediction_id] = self._clock()
        return True

    async def wait_for_change(self, seen: Prediction) -> Prediction:
        entry = self._get_entry(seen.id)
        while entry.prediction.revision <= seen.revision and not seen.ended:
            await entry.changed.wait()
        return entry.prediction

    def _get_entry(self, prediction_id: str) -> _Entry:
        self._remove_old()
        entry = self._entries.get(prediction_id)
        if entry is None:
            raise NotFound(f"there is no prediction {prediction_id[:64]!r}; it may have expired")
        return entry

    def _replace(self, entry: _Entry, prediction: Prediction) -> None:
        if prediction is entry.prediction:
            return
        entry.prediction = prediction
        entry.changed.set()
        entry.changed = asyncio.Event()

    def _remove_old(self) -> None:
        expiry = self._clock() - self._max_age
        while self._ended_at:
            oldest, ended_at = next(iter(self._ended_at.items()))
            if ended_at >= expiry and len(self._entries) <= self._max_records:
                return
            del self._ended_at[oldest], self._entries[oldest]
