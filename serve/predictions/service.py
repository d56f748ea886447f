"""Creates, watches and cancels predictions: the entry point for the HTTP APIs and the Python handle.

An accepted prediction runs in its own task until it ends or is cancelled, whether or not anybody waits for it.
"""

import asyncio
import contextvars
import math
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self

from serve.errors import NotReady, PoolFull
from serve.predictions.event_recorder import elapsed_ms
from serve.predictions.input_images import InputImages
from serve.predictions.prediction import Prediction, utc_now
from serve.predictions.request import ServedVersion, prepare_request
from serve.predictions.runner import PredictionRunner, RunnerJob
from serve.predictions.store import PredictionStore, PredictionUpdate
from serve.settings import Settings

RECENT = 32
RETRY_AFTER_MAX_S = 60.0


class Permit:
    """One place in a pool, given back once however often it is asked; a context manager gives it back at its end."""

    def __init__(self, pool: "_PoolGate") -> None:
        self._pool: _PoolGate | None = pool
        pool.enter(self)

    def release(self) -> None:
        if self._pool is not None:
            self._pool.leave(self)
            self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class AdmissionControl:
    def __init__(self, max_in_flight: Mapping[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._gates = {pool: _PoolGate(limit, clock) for pool, limit in max_in_flight.items()}

    def admit(self, pool: str) -> Permit:
        """A place in `pool`. Raises `PoolFull` with the time after which one should be free."""
        gate = self._gates[pool]
        if gate.full:
            raise PoolFull(pool, gate.next_place_s())
        return Permit(gate)

    def in_flight(self, pool: str) -> int:
        return len(self._gates[pool].entered)

    @property
    def full(self) -> bool:
        """Whether no pool has a place."""
        return all(gate.full for gate in self._gates.values())


class _PoolGate:
    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._recent_stays_s: deque[float] = deque(maxlen=RECENT)
        self.entered: dict[Permit, float] = {}

    @property
    def full(self) -> bool:
        return len(self.entered) >= self._limit

    def enter(self, permit: Permit) -> None:
        self.entered[permit] = self._clock()

    def leave(self, permit: Permit) -> None:
        self._recent_stays_s.append(self._clock() - self.entered.pop(permit))

    def next_place_s(self) -> float:
        """When places are taken for a typical time, one of `limit` falls free every `limit`-th part of it.

        Whole seconds, as the header wants them. Before the first prediction has ended, the stay of the oldest one is
        the best guess: a pool that is starting up is not asked again every second.
        """
        stays_s = self._recent_stays_s or [self._clock() - min(self.entered.values())]
        typical_s = sum(stays_s) / len(stays_s)
        return min(max(1.0, float(math.ceil(typical_s / self._limit))), RETRY_AFTER_MAX_S)


State = Literal["starting", "ready", "full", "closing"]

STOPPED = "the service was stopped before the prediction had ended; send it again"


class PredictionService:
    """Takes predictions between `open` and `close`. Methods with an id raise `NotFound` for one that is not known."""

    def __init__(
        self,
        settings: Settings,
        store: PredictionStore,
        runner: PredictionRunner,
        pictures: InputImages,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._store = store
        self._runner = runner
        self._pictures = pictures
        self._clock = clock
        self._admission = AdmissionControl({name: pool.max_in_flight for name, pool in settings.pools.items()})
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closing = False
        self.created_at = clock()
        self.opened_at: datetime | None = None

    @property
    def state(self) -> State:
        if self._closing:
            return "closing"
        if self.opened_at is None:
            return "starting"
        return "full" if self._admission.full else "ready"

    def open(self) -> None:
        """The pools can be called: from now on predictions are taken."""
        self.opened_at = self._clock()

    async def create(self, raw_inputs: Mapping[str, Any], served: ServedVersion) -> Prediction:
        """Accepts a prediction and starts it.

        Raises `InvalidInput`, also for what is no picture in a `data:` URI, `PoolFull` and `NotReady`.
        """
        self._check_ready()
        since_s = time.perf_counter()
        order = prepare_request(raw_inputs, served, self._settings, secrets.randbits(32))
        permit = self._admission.admit(order.plan.pool)
        try:
            planned_ms = {"plan": elapsed_ms(since_s)}
            pictures = await self._pictures.open(order.inputs, order.plan)
            opened_ms = {"fetch": elapsed_ms(since_s) - planned_ms["plan"]} if order.inputs.image else {}
            self._check_ready()
            prediction = order.record(pictures.plan, self._clock()).with_stage_times(planned_ms | opened_ms)
            await self._store.create(prediction)
        except BaseException:
            permit.release()
            raise
        self._start(RunnerJob(prediction.id, pictures, order.references), permit)
        return prediction

    async def get(self, prediction_id: str) -> Prediction:
        return await self._store.get(prediction_id)

    async def page(self, before: str | None, limit: int) -> list[Prediction]:
        """The newest predictions first, those before the one named `before`."""
        return await self._store.page(before, limit)

    async def wait(self, prediction_id: str, timeout_s: float | None = None) -> Prediction:
        """The prediction when it has ended, or as it is after `timeout_s`."""
        seen = await self._store.get(prediction_id)
        try:
            async with asyncio.timeout(timeout_s):
                while not seen.ended:
                    seen = await self._store.changed(seen)
        except TimeoutError:
            pass
        return seen

    async def watch(self, prediction_id: str) -> AsyncGenerator[Prediction, None]:
        """The prediction as it is, and again after every change until it has ended. Quick changes come as one."""
        seen = await self._store.get(prediction_id)
        yield seen
        while not seen.ended:
            seen = await self._store.changed(seen)
            yield seen

    async def cancel(self, prediction_id: str) -> Prediction:
        """Ends the prediction as canceled; its pool stops within one step. One that has ended stays as it is."""
        await self._stop(prediction_id, self._canceled)
        return await self._store.get(prediction_id)

    @asynccontextmanager
    async def create_attached(
        self, raw_inputs: Mapping[str, Any], served: ServedVersion
    ) -> AsyncGenerator[Prediction, None]:
        """`create` for a caller who stays until the end: leaving the block before it cancels the prediction."""
        prediction = await self.create(raw_inputs, served)
        try:
            yield prediction
        finally:
            await self._stop(prediction.id, self._canceled)

    async def close(self, grace_s: float) -> None:
        """Takes no more predictions, and lets those that run end for `grace_s`; the rest fails."""
        self._closing = True
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=grace_s)
        left = dict(self._tasks)
        for prediction_id in left:
            await self._stop(prediction_id, lambda record: record.failed(self._clock(), STOPPED))
        await asyncio.gather(*left.values(), return_exceptions=True)

    def _check_ready(self) -> None:
        if self._closing:
            raise NotReady("the service is stopping")
        if self.opened_at is None:
            raise NotReady("the service is starting, try again soon")

    def _start(self, job: RunnerJob, permit: Permit) -> None:
        # Ray cancels what was called from the context of a request when its client hangs up, however shielded: only a
        # task with an empty context outlives it.
        task = asyncio.get_running_loop().create_task(self._runner.run(job), context=contextvars.Context())
        self._tasks[job.prediction_id] = task

        def done(_: asyncio.Task[None]) -> None:
            # Not in the task itself: one that is cancelled before its first step never runs at all.
            permit.release()
            del self._tasks[job.prediction_id]

        task.add_done_callback(done)

    def _canceled(self, record: Prediction) -> Prediction:
        return record.canceled(self._clock())

    async def _stop(self, prediction_id: str, ending: PredictionUpdate) -> None:
        """Ends the record first, so that the cancelled runner finds it ended. The pool lets go of its place later."""
        task = self._tasks.get(prediction_id)
        if await self._store.finish(prediction_id, ending) and task is not None:
            task.cancel()
