"""Reads a prediction once per change, however many clients of this process wait for its changes."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from serve.errors import DatabaseUnavailable
from serve.predictions.change_notifier import ChangeNotifier
from serve.predictions.prediction import Prediction

RECHECK_S = 5.0
"""A record is read again after this time, in case that a notification was lost or the database was away."""


class _Followed:
    """One prediction that clients wait for."""

    def __init__(self) -> None:
        self.waiters = 0
        self.task: asyncio.Task[None] | None = None
        self._latest: Prediction | Exception | None = None
        self._published = asyncio.Event()

    def publish(self, latest: Prediction | Exception) -> None:
        """Wakes the waiters, but not for an unchanged record: SQLite tells of the changes of all records."""
        before, self._latest = self._latest, latest
        if latest != before:
            self._published.set()
            self._published = asyncio.Event()

    async def newer_than(self, seen: Prediction) -> Prediction:
        while True:
            latest = self._latest
            if isinstance(latest, Exception):
                raise latest
            if latest is not None and (latest.revision > seen.revision or latest.ended):
                return latest
            await self._published.wait()

    def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()


class Followers:
    """Follows each prediction as long as somebody waits for it. `read` raises `NotFound` and `DatabaseUnavailable`."""

    def __init__(self, notifier: ChangeNotifier, read: Callable[[str], Awaitable[Prediction]]) -> None:
        self._notifier = notifier
        self._read = read
        self._followed: dict[str, _Followed] = {}

    async def wait_for_change(self, seen: Prediction) -> Prediction:
        """The record once it is newer than `seen` or has ended. Raises `NotFound`.

        While the database is away, this waits.
        """
        with self._follow(seen.id) as followed:
            return await followed.newer_than(seen)

    @contextmanager
    def _follow(self, prediction_id: str) -> Iterator[_Followed]:
        followed = self._followed.get(prediction_id)
        if followed is None:
            followed = self._followed[prediction_id] = _Followed()
            # When a client disconnects, Ray cancels everything that was called from the context of its request.
            work = self._run(prediction_id, followed)
            followed.task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        followed.waiters += 1
        try:
            yield followed
        finally:
            followed.waiters -= 1
            if not followed.waiters:
                del self._followed[prediction_id]
                followed.stop()

    async def _run(self, prediction_id: str, followed: _Followed) -> None:
        with self._notifier.subscription(prediction_id) as changed:
            while True:
                changed.clear()
                try:
                    followed.publish(await self._read(prediction_id))
                except DatabaseUnavailable:
                    pass
                except Exception as error:
                    followed.publish(error)
                    return
                try:
                    async with asyncio.timeout(RECHECK_S):
                        await changed.wait()
                except TimeoutError:
                    pass
