"""Records a pool's events in the prediction: outputs, progress, log lines and metrics."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from tqdm import tqdm

from serve.errors import AllImagesFlagged, EngineFailed
from serve.events import Event, Finished, ImageFinished, ImageFlagged, Started, StepDone
from serve.lora.reference import Reference, ResolvedLora
from serve.media.output_store import OutputStore
from serve.plan import Plan, PlannedLora
from serve.predictions.prediction import Output
from serve.predictions.store import PredictionStore, PredictionUpdate


class ProgressBar:
    """The images of a prediction share one bar: it stands where the image that is furthest behind stands."""

    def __init__(self, images: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._done = [0] * images
        self._clock = clock
        self._since_s = clock()

    def update(self, event: StepDone) -> str | None:
        """The new line of the log, or None when the bar did not move."""
        before = min(self._done)
        self._done[event.image] = event.step
        done = min(self._done)
        if done == before:
            return None
        return str(tqdm.format_meter(done, event.total, self._clock() - self._since_s))


SHOWN_TENSORS = 3
MEGABYTE = 1e6


def lora_log_lines(
    uses: Iterable[PlannedLora], references: Mapping[str, Reference], brought: Mapping[str, ResolvedLora[Any]]
) -> tuple[str, ...]:
    """Log lines. All three name a LoRA by the key of its reference."""
    return tuple(
        line
        for use in uses
        for line in _lines(f"LoRA {references[use.key].display_name} at scale {use.scale:g}", brought[use.key])
    )


def lora_metrics(
    uses: Iterable[PlannedLora], references: Mapping[str, Reference], brought: Mapping[str, ResolvedLora[Any]]
) -> dict[str, Any]:
    """The metric `loras`, where there are any: one entry a use, with bytes and seconds."""
    entries = [_entry(use, references[use.key], brought[use.key]) for use in uses]
    return {"loras": entries} if entries else {}


def _lines(what: str, lora: ResolvedLora[Any]) -> Iterator[str]:
    match lora.origin:
        case "memory":
            yield f"{what}: it was at hand"
        case "disk":
            yield f"{what}: it was on the disk of the cache"
        case "download":
            megabytes = f"{lora.fetched_bytes / MEGABYTE:.1f} MB"
            yield f"{what}: downloaded {megabytes} in {lora.fetch_s:.2f} s, checked in {lora.check_s:.2f} s"
    if lora.stale:
        yield f"{what}: it could not be looked up again, so this is how it was last seen"
    if unapplied := lora.metadata.unapplied:
        more = f"; and {len(unapplied) - SHOWN_TENSORS} more" if len(unapplied) > SHOWN_TENSORS else ""
        yield f"{what}: some of its tensors are not applied: {'; '.join(unapplied[:SHOWN_TENSORS])}{more}"


def _entry(use: PlannedLora, reference: Reference, lora: ResolvedLora[Any]) -> dict[str, Any]:
    return {
        "lora": reference.display_name,
        "scale": use.scale,
        "origin": lora.origin,
        "rank": lora.metadata.rank,
        "size_bytes": lora.metadata.size_bytes,
        "fetched_bytes": lora.fetched_bytes,
        "fetch_s": round(lora.fetch_s, 3),
        "check_s": round(lora.check_s, 3),
    }


log = logging.getLogger(__name__)


class EventRecorder:
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
        self._progress = ProgressBar(len(plan.seeds))
        self._drawn: set[int] = set()
        self._flagged: set[int] = set()
        self._finished: Finished | None = None

    async def record(self, event: Event) -> None:
        if self._waited_ms is None:
            await self._begin(event)
        match event:
            case ImageFinished(image) | ImageFlagged(image) if image in self._drawn | self._flagged:
                # A replica was lost, and another one draws the same again.
                return
            case StepDone():
                if line := self._progress.update(event):
                    await self._update(lambda record: record.with_log_lines(line))
            case ImageFinished():
                await self._keep(event)
            case ImageFlagged(image):
                self._flagged.add(image)
                await self._update(
                    lambda record: record.with_log_lines(f"Image {image} was withheld: the safety checker flagged it")
                )
            case Finished():
                self._finished = event

    async def finish(self) -> None:
        """Raises `AllImagesFlagged` when no picture is left, and `EngineFailed` when the events were not complete."""
        finished = self._finished
        if finished is None or self._drawn | self._flagged != set(range(len(self._plan.seeds))):
            log.error("prediction %s: its pool told of no end, or not of every image", self._id)
            raise EngineFailed
        if not self._drawn:
            raise AllImagesFlagged
        stages_ms = finished.stages_ms | {"queue": self._queue_ms(finished)}
        mean_batch = {"mean_batch": round(finished.mean_batch, 2)}
        await self._store.finish(
            self._id,
            lambda record: record.with_stage_times(stages_ms).with_metrics(mean_batch).succeeded(self._clock()),
        )

    async def _begin(self, first: Event) -> None:
        self._waited_ms = elapsed_ms(self._called_s)
        self._progress = ProgressBar(len(self._plan.seeds))
        notes = first.notes if isinstance(first, Started) else ()
        await self._update(lambda record: record.with_log_lines(*notes).started(self._clock()))

    async def _keep(self, event: ImageFinished) -> None:
        since_s = time.perf_counter()
        name = await self._outputs.save(self._id, event.image, event.content, self._plan.output_format)
        stored_ms = {"store": elapsed_ms(since_s)}
        self._drawn.add(event.image)
        await self._update(
            lambda record: record.with_output(Output(index=event.image, name=name)).with_stage_times(stored_ms)
        )

    async def _update(self, change: PredictionUpdate) -> None:
        await self._store.update(self._id, change)

    def _queue_ms(self, finished: Finished) -> float:
        """The wait for the first step, wherever it was spent: while a replica started, too, not only inside of one."""
        busy_ms = sum(finished.stages_ms.get(stage, 0.0) for stage in ("lora", "text", "encode_image"))
        return max(finished.stages_ms.get("queue", 0.0), (self._waited_ms or 0.0) - busy_ms)


def elapsed_ms(since_s: float) -> float:
    """Milliseconds since a moment of `time.perf_counter`."""
    return (time.perf_counter() - since_s) * 1000
