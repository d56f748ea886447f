"""Runs an accepted prediction: loads its images and LoRAs, calls the pool and records its events."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, nullcontext
from datetime import datetime
from typing import Any, Protocol, TypeVar

from serve import tracing
from serve.aio import first_error_task_group
from serve.errors import EngineFailed, LorasMissing, ReplicaLost, public_error
from serve.events import Event
from serve.generation_plan import GenerationPlan
from serve.lora.reference import Reference
from serve.lora.resolved_lora import ResolvedLora
from serve.media.output_store import OutputStore
from serve.model_specs import ImageArray, MaskArray
from serve.predictions.event_recorder import EventRecorder, Uploads, lora_log_lines, lora_metrics
from serve.predictions.input_images import InputImages, LoadedImages, UnfetchedImages
from serve.predictions.prediction import elapsed_ms, utc_now
from serve.predictions.prediction_metrics import record_failure, record_retry
from serve.predictions.store import PredictionStore

CALL_ATTEMPTS = 5
"""Calls of the pool per prediction: replicas, and the weights of LoRAs, can be lost when a node dies."""
SUSPECT_LOSSES = 2
"""A process generates those that were lost this often one after another: one that causes the losses fails alone."""
MAX_LOSSES = 4
"""A prediction fails if this many processes or replicas were lost while they generated it."""
LOST_TOO_OFTEN = f"{MAX_LOSSES} processes were lost while they generated this prediction; try again with other inputs"

Result = TypeVar("Result")
ResolvedLoras = Mapping[str, ResolvedLora[Any]]
"""By reference key."""

log = logging.getLogger(__name__)


class Pool(Protocol):
    """A pool of replicas."""

    def generate(
        self,
        plan: GenerationPlan,
        image: ImageArray | None,
        mask: MaskArray | None,
        loras: Sequence[ResolvedLora[Any]],
        log_id: str,
    ) -> AsyncGenerator[Event, None]:
        """The events of one prediction; an image may be reported twice. `image` and `mask` have the plan's size.

        Log messages about the prediction begin with `log_id`.

        Closing the generator, or cancelling its consumer, cancels the work within one step. Raises `LorasMissing` if a
        replica cannot read some of `loras`, and `ReplicaLost`.
        """


class LoraCache(Protocol):
    """The cluster's LoRA cache."""

    async def get(
        self, references: Mapping[str, Reference], pool: str, lost_handle_ids: Collection[str] = ()
    ) -> ResolvedLoras:
        """Resolves `references`, by input, for `pool`. `lost` has the ids of cache handles that could not be read."""


class PredictionRunner:
    """Runs predictions. The record always reaches a final status, also on errors.

    A `ServiceError` ends it with its own message, any other error with a fixed message; its traceback is logged.
    """

    def __init__(
        self,
        store: PredictionStore,
        pools: Mapping[str, Pool],
        input_images: InputImages,
        lora_cache: LoraCache,
        outputs: OutputStore,
        uploads: Uploads,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store = store
        self._pools = pools
        self._input_images = input_images
        self._lora_cache = lora_cache
        self._outputs = outputs
        self._uploads = uploads
        self._clock = clock
        self._suspect_lock = asyncio.Lock()

    async def run(
        self,
        prediction_id: str,
        images: LoadedImages | UnfetchedImages,
        references: Mapping[str, Reference],
        losses: int = 0,
    ) -> None:
        """Runs one prediction. `references` are the LoRAs of its plan, by the input that names them.

        `losses` is the number of processes and replicas that were lost while they generated it.

        Raises only `CancelledError`. To cancel a prediction, end its record before cancelling its task.
        """
        with tracing.span("prediction", _attributes(images.plan)):
            await self._run(prediction_id, images, references, losses)

    async def _run(
        self,
        prediction_id: str,
        images: LoadedImages | UnfetchedImages,
        references: Mapping[str, Reference],
        losses: int,
    ) -> None:
        try:
            if not (await self._store.get(prediction_id)).ended:
                loaded, loras = await self._prepare(prediction_id, images, references)
                await self._generate(prediction_id, loaded, loras, references, losses)
        except asyncio.CancelledError:
            # Also raised if the pool's call was cancelled elsewhere: then the record still has to end.
            await self._fail(
                prediction_id, images.plan.pool, EngineFailed("the image engine was stopped before it had finished")
            )
            raise
        except Exception as error:
            await self._fail(prediction_id, images.plan.pool, error)

    async def _prepare(
        self, prediction_id: str, images: LoadedImages | UnfetchedImages, references: Mapping[str, Reference]
    ) -> tuple[LoadedImages, ResolvedLoras]:
        """Fetches images and LoRAs and completes the plan, before any pool is called.

        A slow image or LoRA server must not occupy a replica.
        """
        stages_ms: dict[str, float] = {}
        loras: ResolvedLoras = {}
        if isinstance(images, UnfetchedImages) or references:
            images, loras, stages_ms = await self._fetch(images, references)
        loaded, plan = images, images.plan
        by_key = {reference.key: reference for reference in references.values()}
        await self._store.update(
            prediction_id,
            lambda prediction: (
                prediction.with_plan(_with_weights(plan, loras))
                .with_stage_times(stages_ms)
                .with_metrics(lora_metrics(plan.loras, by_key, loras))
                .with_log_lines(*loaded.notes, *lora_log_lines(plan.loras, by_key, loras), _summary(plan))
            ),
        )
        return loaded, loras

    async def _fetch(
        self, images: LoadedImages | UnfetchedImages, references: Mapping[str, Reference]
    ) -> tuple[LoadedImages, ResolvedLoras, dict[str, float]]:
        """Fetches images and LoRAs concurrently. Returns them and the milliseconds of each stage."""
        async with first_error_task_group() as group:
            fetching = group.create_task(_timed(lambda: self._input_images.fetch(images)))
            resolving = group.create_task(_timed(lambda: self._resolve(references, images.plan.pool)))
        stages_ms = {}
        if isinstance(images, UnfetchedImages):
            stages_ms["fetch"] = fetching.result()[1]
        if references:
            stages_ms["lora"] = resolving.result()[1]
        return fetching.result()[0], resolving.result()[0], stages_ms

    async def _resolve(
        self, references: Mapping[str, Reference], pool: str, lost: Collection[str] = ()
    ) -> ResolvedLoras:
        if not references:
            return {}
        with tracing.span("lora"):
            resolved = await self._lora_cache.get(references, pool, lost)
        loras: dict[str, ResolvedLora[Any]] = {}
        for field, reference in references.items():
            # If two inputs name one LoRA, the first one has caused the download.
            loras.setdefault(reference.key, resolved[field])
        return loras

    async def _generate(
        self,
        prediction_id: str,
        images: LoadedImages,
        loras: ResolvedLoras,
        references: Mapping[str, Reference],
        losses: int,
    ) -> None:
        plan = images.plan
        log_id = (await self._store.get(prediction_id)).log_id
        recorder = EventRecorder(prediction_id, plan, self._store, self._outputs, self._uploads, self._clock)
        for attempt in range(1, CALL_ATTEMPTS + 1):
            try:
                async with self._suspect_lock if losses >= SUSPECT_LOSSES else nullcontext():
                    await self._call_pool(images, loras, recorder, log_id)
                break
            except LorasMissing as missing:
                if attempt == CALL_ATTEMPTS:
                    raise
                record_retry(plan.pool, "lora")
                log.warning("%s: the weights of %d LoRAs were lost", log_id, len(missing.keys))
                lost = [lora.handle.id for lora in loras.values() if lora.metadata.key in missing.keys]
                loras = await self._resolve(references, plan.pool, lost)
            except ReplicaLost as error:
                # Those that only waited in a replica did not cause its death.
                if error.started:
                    losses = await self._store.count_loss(prediction_id)
                if losses >= MAX_LOSSES or attempt == CALL_ATTEMPTS:
                    raise EngineFailed(LOST_TOO_OFTEN) from None
                record_retry(plan.pool, "replica")
                log.warning("%s: its replica was lost; another one generates it", log_id)
        await recorder.finish()

    async def _call_pool(
        self, images: LoadedImages, loras: ResolvedLoras, recorder: EventRecorder, log_id: str
    ) -> None:
        plan = _with_weights(images.plan, loras)
        with tracing.span("call_replica", {"flux.pool": plan.pool}) as span:
            stream = self._pools[plan.pool].generate(plan, images.image, images.mask, tuple(loras.values()), log_id)
            call_s, is_waiting = time.monotonic(), True
            async with aclosing(stream) as events:
                async for event in events:
                    if is_waiting:
                        # A replica reports at once that it has the prediction.
                        span.record("wait_for_replica", call_s, time.monotonic())
                        is_waiting = False
                    await recorder.record(event)

    async def _fail(self, prediction_id: str, pool: str, error: Exception) -> None:
        public = public_error(error)
        if public is None:
            log.error("prediction %s failed", prediction_id, exc_info=error)
            public = EngineFailed(f"an internal error; the operator's log has its cause under {prediction_id}")
        tracing.current().fail(public)
        text = str(public)
        if await self._store.finish(prediction_id, lambda each: each.failed(self._clock(), text), release=True):
            record_failure(pool, public)


async def _timed(call: Callable[[], Awaitable[Result]]) -> tuple[Result, float]:
    """The result of `call`, and its duration in milliseconds."""
    start_s = time.perf_counter()
    return await call(), elapsed_ms(start_s)


def _with_weights(plan: GenerationPlan, loras: ResolvedLoras) -> GenerationPlan:
    return plan.with_weights({reference_key: lora.metadata.key for reference_key, lora in loras.items()})


def _attributes(plan: GenerationPlan) -> tracing.Attributes:
    size = {} if plan.size is None else {"flux.size": "x".join(map(str, plan.size))}
    return {"flux.pool": plan.pool, "flux.steps": plan.steps, "flux.outputs": len(plan.seeds), **size}


def _summary(plan: GenerationPlan) -> str:
    images = "1 image" if len(plan.seeds) == 1 else f"{len(plan.seeds)} images"
    size = "x".join(map(str, plan.size or ()))
    return f"Generating {images} of {size} in {plan.steps} steps on {plan.pool}"
