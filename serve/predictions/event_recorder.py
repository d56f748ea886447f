"""Records a pool's events in the prediction: outputs, progress, log lines and metrics."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Protocol

from tqdm import tqdm

from serve import telemetry, tracing
from serve.errors import AllImagesFlagged, EngineFailed
from serve.events import Alive, Event, Finished, ImageFinished, ImageFlagged, Preview, Started, StepDone
from serve.generation_plan import GenerationPlan, PlannedLora
from serve.lora.reference import Reference
from serve.lora.resolved_lora import ResolvedLora
from serve.media.output_store import OutputStore, file_name, media_type
from serve.predictions.prediction import Output, elapsed_ms
from serve.predictions.store import PredictionStore, PredictionUpdate

MAX_LISTED_TENSORS = 3
MEGABYTE = 1e6

log = logging.getLogger(__name__)


class Uploads(Protocol):
    """Sends images to URLs of callers."""

    async def upload(self, prefix: str, name: str, content: bytes, media_type: str, prediction_id: str) -> str:
        """Sends an image to `prefix`/`name` and returns its URL. Raises `OutputUploadFailed`."""


class EventRecorder:
    """Call `record` with every event in order, then `finish`, which ends the prediction as succeeded."""

    def __init__(
        self,
        prediction_id: str,
        plan: GenerationPlan,
        store: PredictionStore,
        outputs: OutputStore,
        uploads: Uploads,
        clock: Callable[[], datetime],
    ) -> None:
        self._id = prediction_id
        self._plan = plan
        self._store = store
        self._outputs = outputs
        self._uploads = uploads
        self._lease_number = store.lease_number(prediction_id)
        self._clock = clock
        self._start_s = time.perf_counter()
        self._first_event_ms: float | None = None
        """Milliseconds between the call of the pool and its first event."""
        self._progress: ProgressBar | None = None
        self._saved: set[int] = set()
        self._flagged: set[int] = set()
        self._finished: Finished | None = None

    async def record(self, event: Event) -> None:
        if isinstance(event, Alive):
            return
        if self._first_event_ms is None:
            await self._start(event)
        match event:
            case ImageFinished(image) | ImageFlagged(image) | Preview(image) if image in self._saved | self._flagged:
                # A replica was lost, and another one generates the same images again; or a preview was late.
                return
            case StepDone(index, step, total):
                bar = self._progress.update(event) if self._progress else None
                lines = (bar,) if bar else ()
                await self._update(lambda each: each.with_progress(index, step, total).with_log_lines(*lines))
            case Preview():
                self._store.add_preview(self._id, event)
            case ImageFinished():
                with tracing.span("store"):
                    await self._save_image(event)
            case ImageFlagged(image):
                self._flagged.add(image)
                self._store.drop_preview(self._id, image)
                telemetry.FLAGGED.add(pool=self._plan.pool)
                line = f"Image {image} was withheld: the safety checker flagged it"
                await self._update(lambda prediction: prediction.with_log_lines(line))
            case Finished():
                self._finished = event

    async def finish(self) -> None:
        """Raises `AllImagesFlagged` if no image is left, and `EngineFailed` if events are missing."""
        finished = self._finished
        if finished is None or self._saved | self._flagged != set(range(len(self._plan.seeds))):
            log.error("prediction %s: the pool's events ended early or without some images", self._id)
            raise EngineFailed
        if not self._saved:
            raise AllImagesFlagged
        stages_ms = finished.stages_ms | {"queue": self._queue_ms(finished)}
        metrics = {"mean_batch": round(finished.mean_batch, 2), "compute_dtype": finished.compute_dtype}
        await self._store.finish(
            self._id,
            lambda prediction: prediction.with_stage_times(stages_ms).with_metrics(metrics).succeeded(self._clock()),
            release=True,
        )

    async def _start(self, first: Event) -> None:
        self._first_event_ms = elapsed_ms(self._start_s)
        self._progress = ProgressBar(len(self._plan.seeds))
        notes = first.notes if isinstance(first, Started) else ()
        await self._update(lambda prediction: prediction.with_log_lines(*notes).started(self._clock()))

    async def _save_image(self, event: ImageFinished) -> None:
        start_s = time.perf_counter()
        name = await self._outputs.save(
            self._id, self._lease_number, event.index, event.content, self._plan.output_format
        )
        prefix = (await self._store.get(self._id)).upload_url
        url = None
        if prefix is not None:
            url = await self._uploads.upload(prefix, file_name(name), event.content, media_type(name), self._id)
        output = Output(index=event.index, name=name, size_bytes=len(event.content), url=url)
        stages_ms = {"store": elapsed_ms(start_s)}
        self._saved.add(event.index)
        self._store.drop_preview(self._id, event.index)
        telemetry.IMAGES.add(pool=self._plan.pool)
        telemetry.OUTPUT_BYTES.add(output.size_bytes, pool=self._plan.pool)
        await self._update(lambda prediction: prediction.with_output(output).with_stage_times(stages_ms))

    async def _update(self, change: PredictionUpdate) -> None:
        await self._store.update(self._id, change)

    def _queue_ms(self, finished: Finished) -> float:
        """The wait for the first step, including the start-up of a replica, without preparation in the engine."""
        preparation_ms = sum(finished.stages_ms.get(stage, 0.0) for stage in ("lora", "text", "encode_image"))
        first_event_ms = 0.0 if self._first_event_ms is None else self._first_event_ms
        return max(finished.stages_ms.get("queue", 0.0), first_event_ms - preparation_ms)


class ProgressBar:
    """One tqdm bar for all images of a prediction, as official clients parse it. It shows the slowest image."""

    def __init__(self, images: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps = [0] * images
        self._clock = clock
        self._start_s = clock()

    def update(self, event: StepDone) -> str | None:
        """The new log line, or None if the bar did not move."""
        before = min(self._steps)
        self._steps[event.index] = event.step
        slowest = min(self._steps)
        if slowest == before:
            return None
        return str(tqdm.format_meter(slowest, event.total, self._clock() - self._start_s))


def lora_log_lines(
    loras: Iterable[PlannedLora], references: Mapping[str, Reference], resolved: Mapping[str, ResolvedLora[Any]]
) -> tuple[str, ...]:
    """Log lines about LoRAs. Both mappings are by reference key."""
    return tuple(
        line
        for lora in loras
        for line in _log_lines(
            f"LoRA {references[lora.reference_key].display_name} at scale {lora.scale:g}", resolved[lora.reference_key]
        )
    )


def lora_metrics(
    loras: Iterable[PlannedLora], references: Mapping[str, Reference], resolved: Mapping[str, ResolvedLora[Any]]
) -> dict[str, Any]:
    """The metric `loras` with an entry per LoRA, sizes in bytes, times in seconds; empty without LoRAs."""
    entries = [_metric(lora, references[lora.reference_key], resolved[lora.reference_key]) for lora in loras]
    return {"loras": entries} if entries else {}


def _log_lines(prefix: str, lora: ResolvedLora[Any]) -> Iterator[str]:
    match lora.origin:
        case "memory":
            yield f"{prefix}: cached in memory"
        case "disk":
            yield f"{prefix}: cached on disk"
        case "download":
            size = f"{lora.fetched_bytes / MEGABYTE:.1f} MB"
            yield f"{prefix}: downloaded {size} in {lora.fetch_s:.2f} s, checked in {lora.check_s:.2f} s"
    if lora.stale:
        yield f"{prefix}: its source cannot be reached, so the cached weights are used"
    if unapplied := lora.metadata.unapplied:
        rest = len(unapplied) - MAX_LISTED_TENSORS
        more = f"; and {rest} more" if rest > 0 else ""
        yield f"{prefix}: some tensors are not applied: {'; '.join(unapplied[:MAX_LISTED_TENSORS])}{more}"


def _metric(lora: PlannedLora, reference: Reference, resolved: ResolvedLora[Any]) -> dict[str, Any]:
    return {
        "lora": reference.display_name,
        "scale": lora.scale,
        "origin": resolved.origin,
        "rank": resolved.metadata.rank,
        "size_bytes": resolved.metadata.size_bytes,
        "fetched_bytes": resolved.fetched_bytes,
        "fetch_s": round(resolved.fetch_s, 3),
        "check_s": round(resolved.check_s, 3),
    }
