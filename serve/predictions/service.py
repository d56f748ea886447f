"""Creates, watches and cancels predictions: the entry point for the HTTP APIs and the Python handle.

An accepted prediction runs in its own task until it ends or is cancelled, even if no client waits for it. If this
process is lost, another one takes the prediction up.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal

from serve import tracing
from serve.access.caller import ANONYMOUS, Caller
from serve.database.patience import with_patience
from serve.errors import DatabaseUnavailable, NotReady, PredictionExists, ServiceError
from serve.logs import request_id
from serve.predictions.create_options import NO_OPTIONS, CreateOptions
from serve.predictions.input_images import InputImages
from serve.predictions.input_store import InputStore
from serve.predictions.own_files import OwnFiles
from serve.predictions.prediction import Prediction, elapsed_ms, utc_now
from serve.predictions.prediction_metrics import export_pools, record_refusals
from serve.predictions.prediction_pages import PageQuery
from serve.predictions.preview_rows import StoredPreview
from serve.predictions.request import ServedVersion, prepare_request
from serve.predictions.resume import Resumer
from serve.predictions.runner import PredictionRunner
from serve.predictions.running_tasks import RunningTasks
from serve.predictions.store import PredictionStore, PredictionUpdate, is_same_creation, unknown_prediction
from serve.settings import Settings

ServiceState = Literal["starting", "ready", "full", "failed", "closing"]

OPEN_TIMEOUT_S = 3.0
"""How long the creation of a prediction waits for a process that starts."""
RENEW_PERIOD_S = 2.0
MAX_CLAIMS = 16
"""Predictions that are taken up at once, so that several processes share those of a lost one."""

log = logging.getLogger(__name__)


class PredictionService:
    """Accepts predictions between `open` and `close`. Methods with an id raise `NotFound` for an unknown id.

    With a `caller`, ids of predictions that it may not see are unknown. `wait` and `watch` do not check that.
    `keep_leases` must run in a task of its own.
    """

    def __init__(
        self,
        settings: Settings,
        store: PredictionStore,
        runner: PredictionRunner,
        input_images: InputImages,
        input_store: InputStore,
        own_files: OwnFiles,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._store = store
        self._runner = runner
        self._input_images = input_images
        self._input_store = input_store
        self._own_files = own_files
        self._clock = clock
        self._tasks = RunningTasks(self._release)
        self._resumer = Resumer(settings, store, runner, input_images, input_store, own_files, self._tasks, clock)
        export_pools(settings.pools)
        self._opened = asyncio.Event()
        self._closing = False
        self._setup_failed = False
        self.created_at = clock()
        self.opened_at: datetime | None = None
        store.on_lost = self._tasks.stop

    async def state(self) -> ServiceState:
        if self._closing:
            return "closing"
        if self.opened_at is None:
            return "failed" if self._setup_failed else "starting"
        return "full" if await self._store.is_full() else "ready"

    def fail_setup(self) -> None:
        """A pool cannot start; it may start later, after a change of the operator."""
        self._setup_failed = True

    def open(self) -> None:
        self.opened_at = self._clock()
        self._opened.set()

    @record_refusals
    async def create(
        self, raw_inputs: Mapping[str, Any], served: ServedVersion, options: CreateOptions = NO_OPTIONS
    ) -> Prediction:
        """Accepts a prediction and starts it.

        Raises `PoolFull`, `TooManyPredictions`, `NotReady`, `DatabaseUnavailable`, `IdempotencyKeyReused`,
        `PredictionExists`, and `InvalidInput`, also for an invalid image in a `data:` URI.
        """
        with tracing.span("create"):
            return await self._create(raw_inputs, served, options)

    async def _create(self, raw_inputs: Mapping[str, Any], served: ServedVersion, options: CreateOptions) -> Prediction:
        await self._wait_until_open()
        key, caller = options.idempotency, options.caller
        if key and (earlier := await with_patience(lambda: self._store.find_earlier(key, caller.owner))):
            return earlier
        start_s = time.perf_counter()
        uploads = await with_patience(lambda: self._own_files.find(raw_inputs, caller))
        prepared = prepare_request(raw_inputs, served, self._settings, secrets.randbits(32), uploads)
        request = prepared.with_previews(options.previews)
        # Before images are decoded and stored. Only the check of `PredictionStore.create` is exact.
        await with_patience(lambda: self._store.check_capacity(request.plan.pool, caller))
        stages_ms = {"plan": elapsed_ms(start_s)}
        images = await self._input_images.load(request.inputs, request.plan)
        if request.inputs.image is not None:
            stages_ms["fetch"] = elapsed_ms(start_s) - stages_ms["plan"]
        self._check_not_closing()
        new = request.new_prediction(images.plan, self._clock(), request_id.get(), options)
        prediction = new.with_stage_times(stages_ms)
        await self._input_store.save(prediction, raw_inputs)
        try:
            with tracing.span("admit", {"flux.pool": prediction.plan.pool}):
                stored = await with_patience(lambda: self._store.create(prediction, options.attached, caller, key))
        except ServiceError as error:
            # If the database is away, the prediction may be stored, and another request with its key returns it.
            if key is None or not isinstance(error, DatabaseUnavailable):
                await self._input_store.try_delete(prediction)
            raise
        if not is_same_creation(stored, prediction):
            await self._input_store.try_delete(prediction)
            if key is None:
                raise PredictionExists(stored.id)
            return stored
        log.info("%s: accepted for %s", prediction.log_id, prediction.plan.pool, extra=prediction.log_fields)
        self._tasks.start(prediction, self._runner.run(prediction.id, images, request.references))
        return prediction

    async def get(self, prediction_id: str, caller: Caller = ANONYMOUS) -> Prediction:
        prediction = await self._store.get(prediction_id)
        if not caller.may_see(prediction.owner):
            raise unknown_prediction(prediction_id)
        return prediction

    async def page(self, query: PageQuery, caller: Caller = ANONYMOUS) -> list[Prediction]:
        """A page of the caller's predictions, the newest first."""
        return await self._store.page(replace(query, owner=caller.visible_owner))

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

    async def previews(self, prediction_id: str) -> dict[int, StoredPreview]:
        """The newest preview of each unfinished image, by index; empty while the database is away."""
        try:
            return await self._store.previews(prediction_id)
        except DatabaseUnavailable:
            return {}

    async def cancel(self, prediction_id: str, caller: Caller = ANONYMOUS) -> Prediction:
        """Ends the prediction as canceled; its replica stops within one step. An ended prediction is not changed."""
        await self.get(prediction_id, caller)
        await self._end(prediction_id, lambda prediction: prediction.canceled(self._clock()))
        return await self._store.get(prediction_id)

    @asynccontextmanager
    async def create_attached(
        self, raw_inputs: Mapping[str, Any], served: ServedVersion, options: CreateOptions = NO_OPTIONS
    ) -> AsyncGenerator[Prediction, None]:
        """Like `create`, but the prediction is cancelled if the block is left before it has ended."""
        prediction = await self.create(raw_inputs, served, replace(options, attached=True))
        try:
            yield prediction
        finally:
            await self._end(prediction.id, lambda prediction: prediction.canceled(self._clock()))

    async def keep_leases(self) -> None:
        """Calls `renew_leases` until cancelled."""
        while True:
            try:
                await self.renew_leases()
            except DatabaseUnavailable as error:
                log.warning("leases are not renewed: %s", error.cause)
            except Exception:
                log.exception("leases are not renewed")
            await asyncio.sleep(RENEW_PERIOD_S)

    async def renew_leases(self) -> None:
        """Renews the leases of running predictions, cancels overdue ones, and takes up those of lost processes."""
        await self._store.renew_leases()
        for prediction_id in self._store.overdue():
            await self.cancel(prediction_id)
        if self.opened_at is not None and not self._closing:
            for claim in await self._store.claim(MAX_CLAIMS):
                await self._resumer.take_up(claim)

    @property
    def is_busy(self) -> bool:
        """Whether this process runs a prediction."""
        return self._tasks.count > 0

    async def close(self, grace_s: float) -> None:
        """Stops accepting predictions, waits `grace_s` for running ones, and leaves the rest to other processes."""
        self._closing = True

        async def release(prediction_id: str) -> None:
            # Without the lease, the cancelled task cannot end the record.
            with suppress(DatabaseUnavailable):
                await self._store.release(prediction_id)

        await self._tasks.close(grace_s, release)

    async def _wait_until_open(self) -> None:
        """A new ingress replica gets requests a moment before it knows that the pools are healthy."""
        self._check_not_closing()
        if not self._opened.is_set():
            try:
                async with asyncio.timeout(0 if self._setup_failed else OPEN_TIMEOUT_S):
                    await self._opened.wait()
            except TimeoutError:
                raise NotReady("the service is starting; try again soon") from None
            self._check_not_closing()

    def _check_not_closing(self) -> None:
        if self._closing:
            raise NotReady("the service is stopping")

    async def _release(self, prediction: Prediction) -> None:
        """Frees the place in the pool. Until it succeeds, the lease expires and another process frees it."""
        try:
            await self._store.release(prediction.id)
            # Another process may still need the inputs.
            if prediction.has_shortened_inputs and (await self._store.get(prediction.id)).ended:
                await self._input_store.try_delete(prediction)
        except DatabaseUnavailable:
            log.warning("%s: its place in the pool is freed later", prediction.log_id, extra=prediction.log_fields)

    async def _end(self, prediction_id: str, ending: PredictionUpdate) -> None:
        """Ends the record first, so that the cancelled runner finds it ended. Its place is free when its task ends."""
        if await with_patience(lambda: self._store.finish(prediction_id, ending)):
            self._tasks.stop(prediction_id)
