"""What the events of one prediction tell while it is drawn, and how that goes into its record. Knows no pool."""

import logging
import time
from collections.abc import Callable
from datetime import datetime

from serve.errors import AllFlagged, EngineFailed
from serve.events import Drawn, Event, Finished, Flagged, Started, Stepped
from serve.media.outputs import OutputStore
from serve.plan import Plan
from serve.predictions.progress import Progress
from serve.predictions.record import Output
from serve.predictions.store import Change, PredictionStore

log = logging.getLogger(__name__)


class Drawing:
    """Takes every event of a pool in turn, then `finish` ends the record as succeeded."""

    def __init__(
        self,
        prediction_id: str,
        plan: Plan,
        store: PredictionStore,
        outputs: OutputStore,
        clock: Callable[[], datetime],
    ) -> None:
        self._id = prediction_id
        self._plan = plan
        self._store = store
        self._outputs = outputs
        self._clock = clock
        self._called_s = time.perf_counter()
        self._waited_ms: float | None = None
        self._progress = Progress(len(plan.seeds))
        self._drawn: set[int] = set()
        self._flagged: set[int] = set()
        self._finished: Finished | None = None

    async def take(self, event: Event) -> None:
        if self._waited_ms is None:
            await self._begin(event)
        match event:
            case Drawn(image) | Flagged(image) if image in self._drawn | self._flagged:
                # A replica was lost, and another one draws the same again.
                return
            case Stepped():
                if line := self._progress.line(event):
                    await self._update(lambda record: record.noted(line))
            case Drawn():
                await self._keep(event)
            case Flagged(image):
                self._flagged.add(image)
                await self._update(
                    lambda record: record.noted(f"Image {image} was withheld: the safety checker flagged it")
                )
            case Finished():
                self._finished = event

    async def finish(self) -> None:
        """Raises `AllFlagged` when no picture is left, and `EngineFailed` when the events were not complete."""
        finished = self._finished
        if finished is None or self._drawn | self._flagged != set(range(len(self._plan.seeds))):
            log.error("prediction %s: its pool told of no end, or not of every image", self._id)
            raise EngineFailed
        if not self._drawn:
            raise AllFlagged
        stages_ms = finished.stages_ms | {"queue": self._queue_ms(finished)}
        mean_batch = {"mean_batch": round(finished.mean_batch, 2)}
        await self._store.finish(
            self._id, lambda record: record.timed(stages_ms).measured(mean_batch).succeeded(self._clock())
        )

    async def _begin(self, first: Event) -> None:
        self._waited_ms = ms_since(self._called_s)
        self._progress = Progress(len(self._plan.seeds))
        notes = first.notes if isinstance(first, Started) else ()
        await self._update(lambda record: record.noted(*notes).begun(self._clock()))

    async def _keep(self, event: Drawn) -> None:
        since_s = time.perf_counter()
        name = await self._outputs.save(self._id, event.image, event.content, self._plan.output_format)
        stored_ms = {"store": ms_since(since_s)}
        self._drawn.add(event.image)
        await self._update(lambda record: record.drawn(Output(index=event.image, name=name)).timed(stored_ms))

    async def _update(self, change: Change) -> None:
        await self._store.update(self._id, change)

    def _queue_ms(self, finished: Finished) -> float:
        """The wait for the first step, wherever it was spent: while a replica started, too, not only inside of one."""
        busy_ms = sum(finished.stages_ms.get(stage, 0.0) for stage in ("lora", "text", "encode_image"))
        return max(finished.stages_ms.get("queue", 0.0), (self._waited_ms or 0.0) - busy_ms)


def ms_since(since_s: float) -> float:
    """Milliseconds since a moment of `time.perf_counter`."""
    return (time.perf_counter() - since_s) * 1000
