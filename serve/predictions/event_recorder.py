"""Records a pool's events in the prediction: outputs, progress, log lines and metrics."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from tqdm import tqdm

from serve.errors import AllFlagged, EngineFailed
from serve.events import Drawn, Event, Finished, Flagged, Started, Stepped
from serve.lora.reference import Brought, Reference
from serve.media.output_store import OutputStore
from serve.plan import LoraUse, Plan
from serve.predictions.prediction import Output
from serve.predictions.store import Change, PredictionStore


class Progress:
    """The images of a prediction share one bar: it stands where the image that is furthest behind stands."""

    def __init__(self, images: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._done = [0] * images
        self._clock = clock
        self._since_s = clock()

    def line(self, event: Stepped) -> str | None:
        """The new line of the log, or None when the bar did not move."""
        before = min(self._done)
        self._done[event.image] = event.done
        done = min(self._done)
        if done == before:
            return None
        return str(tqdm.format_meter(done, event.total, self._clock() - self._since_s))


SHOWN_TENSORS = 3
MEGABYTE = 1e6


def lora_lines(
    uses: Iterable[LoraUse], references: Mapping[str, Reference], brought: Mapping[str, Brought[Any]]
) -> tuple[str, ...]:
    """Log lines. All three name a LoRA by the key of its reference."""
    return tuple(
        line
        for use in uses
        for line in _lines(f"LoRA {references[use.key].shown} at scale {use.scale:g}", brought[use.key])
    )


def lora_metrics(
    uses: Iterable[LoraUse], references: Mapping[str, Reference], brought: Mapping[str, Brought[Any]]
) -> dict[str, Any]:
    """The metric `loras`, where there are any: one entry a use, with bytes and seconds."""
    entries = [_entry(use, references[use.key], brought[use.key]) for use in uses]
    return {"loras": entries} if entries else {}


def _lines(what: str, lora: Brought[Any]) -> Iterator[str]:
    match lora.origin:
        case "memory":
            yield f"{what}: it was at hand"
        case "disk":
            yield f"{what}: it was on the disk of the cache"
        case "download":
            megabytes = f"{lora.fetched_bytes / MEGABYTE:.1f} MB"
            yield f"{what}: downloaded {megabytes} in {lora.fetch_s:.2f} s, checked in {lora.check_s:.2f} s"
    if lora.outdated:
        yield f"{what}: it could not be looked up again, so this is how it was last seen"
    if unapplied := lora.facts.unapplied:
        more = f"; and {len(unapplied) - SHOWN_TENSORS} more" if len(unapplied) > SHOWN_TENSORS else ""
        yield f"{what}: some of its tensors are not applied: {'; '.join(unapplied[:SHOWN_TENSORS])}{more}"


def _entry(use: LoraUse, reference: Reference, lora: Brought[Any]) -> dict[str, Any]:
    return {
        "lora": reference.shown,
        "scale": use.scale,
        "origin": lora.origin,
        "rank": lora.facts.rank,
        "size_bytes": lora.facts.size_bytes,
        "fetched_bytes": lora.fetched_bytes,
        "fetch_s": round(lora.fetch_s, 3),
        "check_s": round(lora.check_s, 3),
    }


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
