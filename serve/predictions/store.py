"""The interface of the store of prediction records.

A change is a function from record to record. The process that runs a prediction holds its lease; the record reaches
other processes, and readers in them, through the database.
"""

from collections.abc import Callable, Collection
from typing import Protocol

from serve.predictions.prediction import Prediction
from serve.predictions.prediction_rows import Claim, PageQuery

PredictionUpdate = Callable[[Prediction], Prediction]


class PredictionStore(Protocol):
    """Methods raise `NotFound` for an unknown or removed record, and `DatabaseUnavailable`."""

    async def check_capacity(self, pool: str) -> None:
        """Raises `PoolFull` if a prediction for `pool` would be rejected now."""

    async def create(self, prediction: Prediction, attached: bool) -> None:
        """Stores a new prediction and takes its lease. Raises `PoolFull`.

        `attached` predictions are cancelled instead of taken up if this process is lost.
        """

    async def get(self, prediction_id: str) -> Prediction: ...

    async def page(self, query: PageQuery) -> list[Prediction]: ...

    async def update(self, prediction_id: str, change: PredictionUpdate) -> Prediction:
        """Applies a change that does not end the record, and returns the record. Needs the lease.

        Without it, or if the record has ended, nothing changes.
        """

    async def finish(self, prediction_id: str, change: PredictionUpdate, release: bool = False) -> bool:
        """Applies a change that ends the record. Returns False if it had ended or was removed before.

        With `release`, the lease is given back, and it is needed. Otherwise, any process may end the record, and the
        place in the pool is free when `release` is called.
        """

    async def release(self, prediction_id: str) -> None:
        """Gives the lease back, if this process has it."""

    async def count_loss(self, prediction_id: str) -> int:
        """Counts a replica that was lost while it generated this prediction. Returns the number of all losses."""

    async def wait_for_change(self, seen: Prediction) -> Prediction:
        """The record once it is newer than `seen`; at once if `seen` has ended."""

    async def renew_leases(self) -> Collection[str]:
        """Extends the leases of this process. Returns the ids of those that it has lost, or that have ended."""

    async def claim(self, limit: int) -> list[Claim]:
        """Takes up to `limit` predictions whose processes were lost or stopped."""
