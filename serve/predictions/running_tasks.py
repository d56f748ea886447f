"""The tasks of the predictions that this process runs."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from serve import tracing
from serve.logs import set_prediction
from serve.predictions.prediction import Prediction


class RunningTasks:
    """`after` is called in a task of its own when the task of a prediction has ended, also if it was stopped."""

    def __init__(self, after: Callable[[Prediction], Coroutine[Any, Any, None]]) -> None:
        self._after = after
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        return len(self._running)

    def start(self, prediction: Prediction, run: Coroutine[Any, Any, None]) -> None:
        # When a client disconnects, Ray cancels everything that was called from the context of its request, even if it
        # is shielded. A task with a new context is not affected.
        context = contextvars.Context()
        context.run(set_prediction, prediction.id, prediction.request_id, prediction.plan.pool)
        context.run(tracing.continue_from, tracing.carrier())
        task = asyncio.get_running_loop().create_task(run, context=context)
        self._running[prediction.id] = task

        def on_done(_: asyncio.Task[None]) -> None:
            if self._running.get(prediction.id) is task:
                del self._running[prediction.id]
            # Not in the task itself: a task that is cancelled before its first step never runs.
            ending = asyncio.get_running_loop().create_task(self._after(prediction))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

        task.add_done_callback(on_done)

    def stop(self, prediction_id: str) -> None:
        if task := self._running.get(prediction_id):
            task.cancel()

    async def close(self, grace_s: float, before_stop: Callable[[str], Awaitable[None]]) -> None:
        """Waits `grace_s` for all tasks, stops the rest after `before_stop`, and waits until all have ended."""
        if tasks := [*self._running.values(), *self._ending]:
            await asyncio.wait(tasks, timeout=grace_s)
        for prediction_id in list(self._running):
            await before_stop(prediction_id)
            self.stop(prediction_id)
        await self.join()

    async def join(self) -> None:
        """Waits until all tasks have ended."""
        while tasks := [*self._running.values(), *self._ending]:
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)
