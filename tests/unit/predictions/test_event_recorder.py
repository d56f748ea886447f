"""The event recorder: logs, outputs, metrics and stage times of predictions whose pool yields scripted events."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from replicate.prediction import Prediction as ClientPrediction

from serve.errors import AllImagesFlagged, EngineFailed
from serve.events import Event, ImageFlagged, Preview, Started, StepDone
from serve.generation_plan import PlannedLora
from serve.lora.reference import ReplicateModel
from serve.lora.resolved_lora import CacheHandle, LoraMetadata, ResolvedLora
from serve.predictions.event_recorder import ProgressBar, lora_log_lines, lora_metrics
from tests.app_factory import make_app
from tests.fakes import DONE, ONE_IMAGE, WEBP, FakeClock, FakePool, image_finished
from tests.unit.predictions.helpers import CAT, run_to_end

REFERENCE = ReplicateModel("me", "sketch")


async def test_logs_contain_seed_summary_and_progress() -> None:
    lines = (await run_to_end(make_app(FakePool(ONE_IMAGE)), CAT)).logs.splitlines()
    seed, summary, *progress = lines
    assert seed == "Using seed: 7"
    assert all(fact in summary for fact in ("1 image ", "1024x1024", "2 steps", "dev-bf16"))
    assert [line.split("|")[0].strip() for line in progress] == ["50%", "100%"]


async def test_progress_of_each_image_is_recorded() -> None:
    events = (Started(), StepDone(0, 1, 4), StepDone(1, 1, 4), StepDone(0, 2, 4))
    last = await run_to_end(make_app(FakePool(events)), CAT | {"num_outputs": 2})
    assert [(each.index, each.step, each.total) for each in last.progress] == [(0, 2, 4), (1, 1, 4)]


class PausingPool(FakePool):
    """Waits at each `None` among its events until the test continues it."""

    def __init__(self, *events: Event | None) -> None:
        super().__init__([])
        self._script = events
        self.pauses: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def generate(self, *_: Any) -> AsyncGenerator[Event, None]:
        for event in self._script:
            if event is not None:
                yield event
                continue
            pause = asyncio.Event()
            self.pauses.put_nowait(pause)
            await pause.wait()


async def test_newest_preview_is_kept_until_its_image_is_finished_or_withheld() -> None:
    pool = PausingPool(
        *(
            Started(),
            StepDone(0, 1, 4),
            Preview(0, 1, 4, b"old"),
            Preview(0, 2, 4, b"new"),
            Preview(1, 1, 4, b"b"),
            None,
        ),
        *(image_finished(0), None, Preview(0, 3, 4, b"late"), ImageFlagged(1), None, DONE),
    )
    app = make_app(pool)
    created = await app.create(CAT | {"num_outputs": 2})
    seen = []
    for _ in range(3):
        pause = await asyncio.wait_for(pool.pauses.get(), 5)
        contents = {image: each.content for image, each in (await app.service.previews(created.id)).items()}
        progress = (await app.service.get(created.id)).progress
        seen.append((contents, {each.index: each.preview_step for each in progress}))
        pause.set()
    assert seen == [({0: b"new", 1: b"b"}, {0: 2, 1: 1}), ({1: b"b"}, {0: 0, 1: 1}), ({}, {0: 0, 1: 0})]
    ended = await asyncio.wait_for(app.service.wait(created.id), 5)
    assert (ended.status, await app.service.previews(created.id)) == ("succeeded", {})


async def test_notes_of_the_engine_are_logged_once_if_a_replica_is_replaced() -> None:
    started = Started(("T5 reads only the first 128 of the prompt's 300 tokens",))
    logs = (await run_to_end(make_app(FakePool((started, started, *ONE_IMAGE[1:]))), CAT)).logs
    assert logs.count("T5 reads only the first 128") == 1


async def test_metrics_and_stage_times_are_recorded() -> None:
    last = await run_to_end(make_app(FakePool(ONE_IMAGE)), CAT)
    assert last.metrics["seed"] == 7
    assert last.metrics["pool"] == "dev-bf16"
    assert last.metrics["mean_batch"] == 2.5
    assert last.metrics["compute_dtype"] == "float32"
    assert {"predict_time", "total_time"} <= last.metrics.keys()
    assert {"plan", "queue", "text", "denoise", "store"} <= last.stages_ms.keys()
    assert last.stages_ms["denoise"] == 30.0


async def test_queue_stage_includes_the_wait_for_a_replica() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    start_s = time.perf_counter()
    prediction = await app.create(CAT)
    await asyncio.sleep(0.1)
    pool.may_start.set()
    last = await app.service.wait(prediction.id)
    # The stage takes less time than the prediction on any machine.
    assert 90 < last.stages_ms["queue"] < 1000 * (time.perf_counter() - start_s)


async def test_flagged_images_are_withheld_and_the_others_keep_their_index() -> None:
    events = (Started(), image_finished(2), ImageFlagged(1), image_finished(0), DONE)
    last = await run_to_end(make_app(FakePool(events)), CAT | {"num_outputs": 3})
    assert [output.name for output in last.outputs] == ["1/out-0.webp", "1/out-2.webp"]
    assert [output.size_bytes for output in last.outputs] == [len(WEBP)] * 2
    [line] = [line for line in last.logs.splitlines() if "withheld" in line]
    assert "1" in line


@pytest.mark.parametrize("events", [(Started(), ImageFlagged(0), DONE), (Started(), AllImagesFlagged())])
async def test_prediction_fails_with_the_error_of_replicate_if_all_images_are_flagged(
    events: tuple[Event | BaseException, ...],
) -> None:
    last = await run_to_end(make_app(FakePool(events)), CAT)
    assert (last.status, last.error) == (
        "failed",
        "All generated images contained NSFW content. Try running it again with a different prompt.",
    )


@pytest.mark.parametrize(
    "events",
    [(), (Started(), StepDone(0, 1, 2)), (Started(), DONE), (Started(), image_finished(0), image_finished(0), DONE)],
    ids=["no event", "no end", "no image", "one of two images"],
)
async def test_prediction_fails_if_events_are_missing(events: tuple[Event, ...]) -> None:
    last = await run_to_end(make_app(FakePool(events)), CAT | {"num_outputs": 2})
    assert (last.status, last.error) == ("failed", str(EngineFailed()))


@pytest.mark.parametrize(("step", "percentage"), [(1, 0.03), (3, 0.1), (28, 1.0)])
def test_progress_line_is_parsed_by_the_official_client(step: int, percentage: float) -> None:
    line = ProgressBar(images=1).update(StepDone(index=0, step=step, total=28))
    parsed = ClientPrediction.Progress.parse(f"Using seed: 7\n{line}\n")
    assert parsed is not None
    assert (parsed.current, parsed.total) == (step, 28)
    assert parsed.percentage == pytest.approx(percentage, abs=0.011)


def test_progress_line_contains_elapsed_and_remaining_time() -> None:
    clock = FakeClock()
    progress = ProgressBar(images=1, clock=clock)
    clock.elapsed_s = 4
    line = progress.update(StepDone(index=0, step=8, total=28))
    assert line is not None
    assert line.endswith("[00:04<00:10,  2.00it/s]")


def test_progress_bar_shows_the_slowest_image() -> None:
    progress = ProgressBar(images=2)
    events = [StepDone(0, 1, 4), StepDone(1, 1, 4), StepDone(1, 2, 4), StepDone(0, 2, 4)]
    lines = [progress.update(event) for event in events]
    assert [line and line.split("|")[2].split()[0] for line in lines] == [None, "1/4", None, "2/4"]


def log_lines(unapplied: tuple[str, ...] = (), **fields: Any) -> tuple[str, ...]:
    """The log lines of one LoRA, in memory unless `fields` has another origin, at scale -1.5."""
    metadata = LoraMetadata("0", size_bytes=8, rank=4, unapplied=unapplied)
    resolved = ResolvedLora(metadata, CacheHandle(None, "1"), **{"origin": "memory", **fields})
    lora = PlannedLora(reference_key=REFERENCE.key, scale=-1.5)
    return lora_log_lines([lora], {REFERENCE.key: REFERENCE}, {REFERENCE.key: resolved})


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({}, ["memory"]),
        ({"origin": "disk"}, ["disk"]),
        ({"origin": "download", "fetched_bytes": 2_000_000, "fetch_s": 0.5, "check_s": 0.25}, ["2.0 MB in 0.50 s"]),
        ({"stale": True}, ["memory", "cannot be reached"]),
        ({"unapplied": ("a: odd", "b: odd", "c: odd", "d: odd", "e: odd")}, ["memory", "a: odd; b: odd; c: odd"]),
    ],
    ids=["memory", "disk", "download", "stale", "unapplied tensors"],
)
def test_lora_log_lines_contain_name_scale_and_facts(fields: dict[str, Any], facts: list[str]) -> None:
    lines = log_lines(**fields)
    assert all("me/sketch" in line and "-1.5" in line for line in lines)
    assert len(lines) == len(facts)
    assert all(fact in line for fact, line in zip(facts, lines, strict=True))


def test_lora_log_line_counts_the_unapplied_tensors_that_it_does_not_list() -> None:
    line = log_lines(unapplied=("a: odd", "b: odd", "c: odd", "d: odd", "e: odd"))[-1]
    assert "2 more" in line
    assert "d: odd" not in line
    assert "more" not in log_lines(unapplied=("a: odd", "b: odd", "c: odd"))[-1]


def test_lora_metrics_have_an_entry_for_each_planned_lora() -> None:
    resolved = ResolvedLora(
        LoraMetadata("0", size_bytes=8, rank=4), CacheHandle(None, "1"), "download", 6, 0.12345, 0.5
    )
    loras = [PlannedLora(reference_key=REFERENCE.key, scale=scale) for scale in (1.0, 0.5)]
    first, second = lora_metrics(loras, {REFERENCE.key: REFERENCE}, {REFERENCE.key: resolved})["loras"]
    assert first == {
        "lora": "me/sketch",
        "scale": 1.0,
        "origin": "download",
        "rank": 4,
        "size_bytes": 8,
        "fetched_bytes": 6,
        "fetch_s": 0.123,
        "check_s": 0.5,
    }
    assert second == {**first, "scale": 0.5}
