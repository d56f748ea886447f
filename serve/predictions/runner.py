"""Runs one accepted prediction to its end, apart from any request: pictures, LoRAs, pool, events, outputs, record.

Knows a pool only as something that turns a plan into events, and no face. Whatever happens, the record ends: an error
of `serve.errors` gives its own sentence, any other a fixed one, and its traceback goes into the log.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from serve.aio import first_error_task_group
from serve.errors import EngineFailed, LorasMissing, public_error
from serve.events import Event
from serve.lora.reference import Reference, ResolvedLora
from serve.media.decode import ImageArray
from serve.media.output_store import OutputStore
from serve.plan import Plan
from serve.predictions.event_recorder import EventRecorder, elapsed_ms, lora_log_lines, lora_metrics
from serve.predictions.input_images import InputImages, LoadedImages, PendingImages
from serve.predictions.prediction import utc_now
from serve.predictions.store import PredictionStore

LORA_ATTEMPTS = 3
"""Weights that were at hand can be lost on the way: a replica made room for others, or the cache died."""

Result = TypeVar("Result")
LorasAtHand = Mapping[str, ResolvedLora[Any]]
"""By the key of their reference."""

log = logging.getLogger(__name__)


class PoolProtocol(Protocol):
    """Replicas that draw. Closing the generator, or cancelling who waits for it, cancels the work within one step."""

    def generate(
        self, plan: Plan, picture: ImageArray | None, mask: ImageArray | None, loras: Sequence[ResolvedLora[Any]]
    ) -> AsyncGenerator[Event, None]:
        """Events as `serve.events` says; an image may be told of twice. `picture` and `mask` have the size of the plan.

        `loras` are all that the plan names by the keys of their weights. Raises `LorasMissing` for those that a replica
        could not read.
        """


class LoraSource(Protocol):
    """What finds and brings LoRAs."""

    async def get(self, references: Mapping[str, Reference], pool: str, lost: Collection[str] = ()) -> LorasAtHand:
        """The LoRAs of `references` for `pool`. `lost` has the numbers of copies that could not be read."""


@dataclass(frozen=True, slots=True)
class RunnerJob:
    """An accepted prediction as it waits for the runner."""

    prediction_id: str
    pictures: LoadedImages | PendingImages
    references: Mapping[str, Reference] = field(default_factory=dict)
    """Of the plan's LoRAs, by their keys."""


class PredictionRunner:
    def __init__(
        self,
        store: PredictionStore,
        pools: Mapping[str, PoolProtocol],
        pictures: InputImages,
        loras: LoraSource,
        outputs: OutputStore,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store = store
        self._pools = pools
        self._pictures = pictures
        self._loras = loras
        self._outputs = outputs
        self._clock = clock

    async def run(self, job: RunnerJob) -> None:
        """Raises nothing but `CancelledError`; who cancels this has ended the record before."""
        try:
            if await self._store.claim(job.prediction_id) is not None:
                await self._draw(job, *await self._prepare(job))
        except asyncio.CancelledError:
            # Also what comes out of a pool whose work somebody else cancelled: then the record still has to end.
            await self._fail(job.prediction_id, EngineFailed("the image engine was stopped before it had finished"))
            raise
        except Exception as error:
            await self._fail(job.prediction_id, error)

    async def _prepare(self, job: RunnerJob) -> tuple[LoadedImages, LorasAtHand]:
        """The plan with its pictures, and its LoRAs. Slow servers elsewhere are waited for here, in no pool."""
        pool = job.pictures.plan.pool
        async with first_error_task_group() as preparing:
            fitting = preparing.create_task(_timed(partial(self._pictures.fetch_pending, job.pictures)))
            bringing = preparing.create_task(_timed(partial(self._loras.get, job.references, pool)))
        (prepared, fetch_ms), (loras, lora_ms) = fitting.result(), bringing.result()
        stages_ms = {"fetch": fetch_ms} if isinstance(job.pictures, PendingImages) else {}
        stages_ms |= {"lora": lora_ms} if job.references else {}
        await self._tell(job, prepared.plan, loras, stages_ms)
        return prepared, loras

    async def _tell(self, job: RunnerJob, plan: Plan, loras: LorasAtHand, stages_ms: Mapping[str, float]) -> None:
        told = plan.loras, job.references, loras
        await self._store.update(
            job.prediction_id,
            lambda record: (
                record.with_plan(_with_weights(plan, loras))
                .with_stage_times(stages_ms)
                .with_metrics(lora_metrics(*told))
                .with_log_lines(*lora_log_lines(*told), _summary(plan))
            ),
        )

    async def _draw(self, job: RunnerJob, prepared: LoadedImages, loras: LorasAtHand) -> None:
        plan = prepared.plan
        drawing = EventRecorder(job.prediction_id, plan, self._store, self._outputs, self._clock)
        for attempt in range(1, LORA_ATTEMPTS + 1):
            try:
                await self._draw_with(loras, prepared, drawing)
                break
            except LorasMissing as missing:
                if attempt == LORA_ATTEMPTS:
                    raise
                log.warning("prediction %s: %d of its LoRAs were lost", job.prediction_id, len(missing.keys))
                lost = [lora.handle.id for lora in loras.values() if lora.metadata.key in missing.keys]
                loras = await self._loras.get(job.references, plan.pool, lost)
        await drawing.finish()

    async def _draw_with(self, loras: LorasAtHand, prepared: LoadedImages, drawing: EventRecorder) -> None:
        plan = _with_weights(prepared.plan, loras)
        drawn = self._pools[plan.pool].generate(plan, prepared.image, prepared.mask, tuple(loras.values()))
        async with aclosing(drawn) as events:
            async for event in events:
                await drawing.record(event)

    async def _fail(self, prediction_id: str, error: Exception) -> None:
        known = public_error(error)
        if known is None:
            log.error("prediction %s failed", prediction_id, exc_info=error)
        text = str(known or EngineFailed(f"an internal error; the operator's log has its cause under {prediction_id}"))
        await self._store.finish(prediction_id, lambda record: record.failed(self._clock(), text))


async def _timed(work: Callable[[], Awaitable[Result]]) -> tuple[Result, float]:
    """The result of `work`, and the milliseconds until it was there."""
    since_s = time.perf_counter()
    return await work(), elapsed_ms(since_s)


def _with_weights(plan: Plan, loras: LorasAtHand) -> Plan:
    """The plan with its LoRAs named by their weights."""
    return plan.with_lora_keys({name: lora.metadata.key for name, lora in loras.items()})


def _summary(plan: Plan) -> str:
    images = "1 image" if len(plan.seeds) == 1 else f"{len(plan.seeds)} images"
    size = "x".join(map(str, plan.size or ()))
    return f"Drawing {images} of {size} in {plan.steps} steps on {plan.pool}"
