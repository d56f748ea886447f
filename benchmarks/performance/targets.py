"""The table of targets in docs/performance.md."""

from collections.abc import Iterator
from typing import Any

from benchmarks.performance.markdown import NOT_MEASURED, figure, percent, table
from benchmarks.performance.results import Row, Run, find, run_name
from benchmarks.performance.sections import LARGE, MEDIUM, MIXED, PRECISIONS


def targets_table(first: Run, now: Run | None) -> str:
    """The figures to reach on one H100 80 GB."""

    def rows() -> Iterator[tuple[str, ...]]:
        for what, labels, name, unit, target in _targets():
            yield what, *(figure(find(run, **labels), name, unit=unit) for run in (first, now)), target
        for precision, target in zip(PRECISIONS, ("≤ 5 %", "≤ 8 %"), strict=True):
            for rank in (16, 64):
                labels = {"topic": "lora", "size": LARGE, "precision": precision, "ranks": [[rank]]}
                shown = [percent(find(run, **labels), "extra") for run in (first, now)]
                yield f"[dev] {precision}, a LoRA of rank {rank}, more per step", *shown, target
        labels = {"topic": "lora", "size": LARGE, "precision": "bf16", "ranks": MIXED}
        shown = [percent(find(run, **labels), "extra") for run in (first, now)]
        yield "[dev] bf16, four images with four LoRAs, more than without", *shown, "≤ 6 %"
        yield "graphs compiled for a new size, LoRA or scale", *map(_new_graphs, (first, now)), "0"
        labels = {"topic": "start", "precision": "bf16", "process": "second"}
        shown = [_start_s(find(run, **labels)) for run in (first, now)]
        yield "second start of a replica, without reading the weights", *shown, "≤ 60 s"

    return table(("1024² unless stated", first.name, run_name(now), "target"), rows())


def _targets() -> Iterator[tuple[str, dict[str, Any], str, str, str]]:
    step: dict[str, Any] = {"topic": "step", "model": "dev", "batch": 1}
    image: dict[str, Any] = {"topic": "image", "size": LARGE, "images": 1}
    for precision, step_ms, image_s, schnell_s in (("bf16", 118, 3.4, 0.52), ("fp8", 85, 2.45, 0.40)):
        labels = {"precision": precision}
        yield f"[dev] {precision}, a step", step | labels | {"size": LARGE}, "step_ms", " ms", f"≤ {step_ms} ms"
        dev, schnell = image | labels | {"model": "dev", "steps": 28}, image | labels | {"model": "schnell", "steps": 4}
        yield f"[dev] {precision}, an image in 28 steps", dev, "seconds", " s", f"≤ {image_s} s"
        yield f"[schnell] {precision}, an image in 4 steps", schnell, "seconds", " s", f"≤ {schnell_s:.2f} s"
    yield "[dev] bf16, a step at 512²", step | {"precision": "bf16", "size": MEDIUM}, "step_ms", " ms", "≤ 35 ms"


def _new_graphs(run: Run | None) -> str:
    rows = [] if run is None else list(run.select(topic="recompilation"))
    return str(sum(row["new_graphs"] for row in rows)) if rows else NOT_MEASURED


def _start_s(row: Row | None) -> str:
    return NOT_MEASURED if row is None else f"{row['load_s'] + row['warm_up_s']:.0f} s"
