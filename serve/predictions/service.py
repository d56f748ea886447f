"""Creates, watches and cancels predictions: the entry point for the HTTP APIs and the Python handle.

An accepted prediction runs in its own task until it ends or is cancelled, even if no client waits for it.
"""

import asyncio
import contextvars
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Literal

from serve.errors import NotReady
from serve.predictions.admission import AdmissionControl, Permit
from serve.predictions.input_images import InputImages
from serve.predictions.own_files import OwnFiles
from serve.predictions.prediction import Prediction, elapsed_ms, utc_now
from serve.predictions.request import ServedVersion, prepare_request
from serve.predictions.runner import PredictionRunner
from serve.predictions.store import PredictionStore, PredictionUpdate
from serve.settings import Settings

ServiceState = Literal["starting", "ready", "full", "closing"]


class PredictionService:
    """Accepts predictions between `open` and `close`. Methods with an id raise `NotFound` for an unknown id."""

    def __init__(
        self,
        settings: Settings,
        store: PredictionStore,
        runner: PredictionRunner,
        input_images: InputImages,
        own_files: OwnFiles,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._store = store
        self._runner = runner
        self._input_images = input_images
        self._own_files = own_files
        self._clock = clock
        self._admission = AdmissionControl({name: pool.max_in_flight for name, pool in settings.pools.items()})
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closing = False
        self.created_at = clock()
        self.opened_at: datetime | None = None

    @property
    def state(self) -> ServiceState:
        if self._closing:
            return "closing"
        if self.opened_at is None:
            return "starting"
        return "full" if self._admission.full else "ready"

    def open(self) -> None:
        """Starts accepting predictions."""
        self.opened_at = self._clock()

    async def create(self, raw_inputs: Mapping[str, Any], served: ServedVersion) -> Prediction:
        """Accepts a prediction and starts it.

        Raises `PoolFull`, `NotReady`, and `InvalidInput`, also for an invalid image in a `data:` URI.
        """
        self._check_ready()
        start_s = time.perf_counter()
        uploads = await self._own_files.find(raw_inputs)
        request = prepare_request(raw_inputs, served, self._settings, secrets.randbits(32), uploads)
        permit = self._admission.admit(request.plan.pool)
        try:
            stages_ms = {"plan": elapsed_ms(start_s)}
            images = await self._input_images.load(request.inputs, request.plan)
            if request.inputs.image is not None:
                stages_ms["fetch"] = elapsed_ms(start_s) - stages_ms["plan"]
            self._check_ready()
            prediction = request.new_prediction(images.plan, self._clock()).with_stage_times(stages_ms)
            await self._store.create(prediction)
        except BaseException:
            permit.release()
            raise
        self._start(prediction.id, self._runner.run(prediction.id, images, request.references), permit)
        return prediction

    async def get(self, prediction_id: str) -> Prediction:
        return await self._store.get(prediction_id)

    async def page(self, before: str | None, limit: int) -> list[Prediction]:
        """Up to `limit` predictions, newest first, older than the prediction `before` if given."""
        return await self._store.page(before, limit)

    async def wait(self, prediction_id: str, timeout_s: float | None = None) -> Prediction:
        """The prediction when it has ended, or its current state after `timeout_s`."""
        current = await self._store.get(prediction_id)
        try:
            async with asyncio.timeout(timeout_s):
                while not current.ended:
                    current = await self._store.wait_for_change(current)
        except TimeoutError:
            pass
        return current

    async def watch(self, prediction_id: str) -> AsyncGenerator[Prediction, None]:
        """The prediction now and after every change until it has ended. Several quick changes may be yielded as one."""
        current = await self._store.get(prediction_id)
        yield current
        while not current.ended:
            current = await self._store.wait_for_change(current)
            yield current

    async def cancel(self, prediction_id: str) -> Prediction:
        """Ends the prediction as canceled; its replica stops within one step. An ended prediction is not changed."""
        await self._end(prediction_id, lambda prediction: prediction.canceled(self._clock()))
        return await self._store.get(prediction_id)

    @asynccontextmanager
    async def create_attached(
        self, raw_inputs: Mapping[str, Any], served: ServedVersion
    ) -> AsyncGenerator[Prediction, None]:
        """Like `create`, but the prediction is cancelled if the block is left before it has ended."""
        prediction = await self.create(raw_inputs, served)
        try:
            yield prediction
        finally:
            await self._end(prediction.id, lambda prediction: prediction.canceled(self._clock()))

    async def close(self, grace_s: float) -> None:
        """Stops accepting predictions, waits `grace_s` for running ones, and fails the rest."""
        self._closing = True
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=grace_s)
        unfinished = dict(self._tasks)
        error = "the service stopped before the prediction had ended; send it again"
        for prediction_id in unfinished:
            await self._end(prediction_id, lambda prediction: prediction.failed(self._clock(), error))
        await asyncio.gather(*unfinished.values(), return_exceptions=True)

    def _check_ready(self) -> None:
        if self._closing:
            raise NotReady("the service is stopping")
        if self.opened_at is None:
            raise NotReady("the service is starting; try again soon")

    def _start(self, prediction_id: str, run: Coroutine[Any, Any, None], permit: Permit) -> None:
        # When a client disconnects, Ray cancels everything that was called from the context of its request, even if it
        # is shielded. A task with an empty context is not affected.
        task = asyncio.get_running_loop().create_task(run, context=contextvars.Context())
        self._tasks[prediction_id] = task

        def on_done(_: asyncio.Task[None]) -> None:
            # Not in the task itself: a task that is cancelled before its first step never runs.
            permit.release()
            del self._tasks[prediction_id]

        task.add_done_callback(on_done)

    async def _end(self, prediction_id: str, ending: PredictionUpdate) -> None:
        """Ends the record first, so that the cancelled runner finds it ended. Its permit is released with its task."""
        task = self._tasks.get(prediction_id)
        if await self._store.finish(prediction_id, ending) and task is not None:
            task.cancel()
