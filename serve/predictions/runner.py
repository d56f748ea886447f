"""Runs one accepted prediction to its end, apart from any request: pictures, pool, events, outputs, record.

Knows a pool only as something that turns a plan into events, and no face. Whatever happens, the record ends: an error
of `serve.errors` gives its own sentence, any other a fixed one, and its traceback goes into the log.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from serve.errors import EngineFailed
from serve.events import Event
from serve.media.fit import Pixels
from serve.media.outputs import OutputStore
from serve.plan import Plan
from serve.predictions.drawing import Drawing, ms_since
from serve.predictions.failure import told
from serve.predictions.pictures import Awaited, Pictures, Prepared
from serve.predictions.record import now
from serve.predictions.store import PredictionStore

log = logging.getLogger(__name__)


class Pool(Protocol):
    """Replicas that draw. Closing the generator, or cancelling who waits for it, cancels the work within one step."""

    def generate(self, plan: Plan, picture: Pixels | None, mask: Pixels | None) -> AsyncGenerator[Event, None]:
        """Events as `serve.events` says. `picture` and `mask` have the size of the plan."""


@dataclass(frozen=True, slots=True)
class Job:
    """An accepted prediction as it waits for the runner."""

    prediction_id: str
    pictures: Prepared | Awaited


class Runner:
    def __init__(
        self,
        store: PredictionStore,
        pools: Mapping[str, Pool],
        pictures: Pictures,
        outputs: OutputStore,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._store = store
        self._pools = pools
        self._pictures = pictures
        self._outputs = outputs
        self._clock = clock

    async def run(self, job: Job) -> None:
        """Raises nothing but `CancelledError`; who cancels this has ended the record before."""
        try:
            if await self._store.claim(job.prediction_id) is not None:
                await self._draw(job.prediction_id, await self._prepare(job))
        except asyncio.CancelledError:
            # Also what comes out of a pool whose work somebody else cancelled: then the record still has to end.
            await self._fail(job.prediction_id, EngineFailed("the image engine was stopped before it had finished"))
            raise
        except Exception as error:
            await self._fail(job.prediction_id, error)

    async def _prepare(self, job: Job) -> Prepared:
        """The plan with its pictures. A slow server elsewhere is waited for here, in no pool."""
        since_s = time.perf_counter()
        prepared = await self._pictures.prepare(job.pictures)
        fetched_ms = {"fetch": ms_since(since_s)} if isinstance(job.pictures, Awaited) else {}
        plan = prepared.plan
        await self._store.update(
            job.prediction_id, lambda record: record.planned(plan).timed(fetched_ms).noted(_summary(plan))
        )
        return prepared

    async def _draw(self, prediction_id: str, prepared: Prepared) -> None:
        plan = prepared.plan
        drawing = Drawing(prediction_id, plan, self._store, self._outputs, self._clock)
        pool = self._pools[plan.pool]
        async with aclosing(pool.generate(plan, prepared.picture, prepared.mask)) as events:
            async for event in events:
                await drawing.take(event)
        await drawing.finish()

    async def _fail(self, prediction_id: str, error: Exception) -> None:
        known = told(error)
        if known is None:
            log.error("prediction %s failed", prediction_id, exc_info=error)
        text = str(known or EngineFailed(f"an internal error; the operator's log has its cause under {prediction_id}"))
        await self._store.finish(prediction_id, lambda record: record.failed(self._clock(), text))


def _summary(plan: Plan) -> str:
    images = "1 image" if len(plan.seeds) == 1 else f"{len(plan.seeds)} images"
    size = "x".join(map(str, plan.size or ()))
    return f"Drawing {images} of {size} in {plan.steps} steps on {plan.pool}"
