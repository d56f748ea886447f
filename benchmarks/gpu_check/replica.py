"""Measures an engine as a replica runs it: its start, whole images and their stages, and recompilations."""

import statistics
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np

from benchmarks.engine_runs import Run, generate, make_lora, make_request, peak_gb, size_name
from benchmarks.gpu_check.scale import SCALES, Scale, make_checkpoint, make_pool
from benchmarks.gpu_check.step_benchmark import Row
from serve.engine.checkpoint import Checkpoint
from serve.engine.compilation import compiled_graphs
from serve.engine.cuda_graphs import CAPTURE_USES
from serve.engine.engine import Engine
from serve.engine.quantize import weight_bytes
from serve.engine.request import GenerationRequest
from serve.model_specs import Size, VariantName
from serve.settings import Precision

PROMPTS = ("a red sailboat on a calm sea", "a lighthouse at night", "a market in the rain", "two foxes in the snow")
_STAGES = ("text", "denoise", "decode")


class Replica:
    """A started engine that is warmed up, and the time that its start took."""

    def __init__(self, scale: Scale, variant: VariantName, precision: Precision) -> None:
        model, self.pool = make_pool(scale, variant, precision)
        start_s = time.perf_counter()
        self.checkpoint: Checkpoint = make_checkpoint(scale, model, self.pool)
        self.load_s = time.perf_counter() - start_s
        self.engine = Engine(self.checkpoint, self.pool)
        self.engine.start()
        start_s = time.perf_counter()
        self.engine.warm_up(self.pool.warmup_sizes)
        self.warm_up_s = time.perf_counter() - start_s

    def generate(self, request: GenerationRequest) -> Run:
        """Runs one request. Raises `RequestFailed` if it fails."""
        return generate(self.engine, [request])

    def close(self) -> None:
        self.engine.stop()


def measure_replica(scale_name: str, variant: VariantName, precision: Precision, process: str) -> Iterator[Row]:
    """All rows of a replica; in a process other than the first only those of its start.

    Whether the compile cache is cold depends on the order of the parts: that of the first process is.
    """
    scale = SCALES[scale_name]
    labels: Row = {"model": variant, "precision": precision}
    with closing(Replica(scale, variant, precision)) as replica:
        first = replica.generate(make_request(scale.large, 2, prompt=PROMPTS[-1]))
        yield {"topic": "start", **labels, "process": process} | {
            "warm_up_sizes": len(replica.pool.warmup_sizes),
            "load_s": round(replica.load_s, 3),
            "warm_up_s": round(replica.warm_up_s, 3),
            "first_image_s": round(first.seconds, 3),
        }
        if process == "first":
            yield from _image_rows(scale, replica, labels)
            yield from _recompilation_rows(scale, replica, labels)
            yield _memory_row(replica, labels)


def _image_rows(scale: Scale, replica: Replica, labels: Row) -> Iterator[Row]:
    steps = scale.dev_steps if labels["model"] == "dev" else scale.schnell_steps
    for size, seeds in ((scale.large, (0,)), (scale.medium, (0,)), (scale.large, (0, 1, 2, 3))):
        repeats = scale.repeats if len(seeds) == 1 else 1
        yield _image_row(replica, labels, size, steps, seeds, repeats)
    yield _encoding_row(replica, labels, scale.large)


def _image_row(replica: Replica, labels: Row, size: Size, steps: int, seeds: tuple[int, ...], repeats: int) -> Row:
    """The median over requests with different prompts, so that no prompt is in the cache. The first is not timed."""
    requests = [make_request(size, steps, seeds, prompt=f"{PROMPTS[0]} {size} {number}") for number in range(repeats)]
    replica.generate(make_request(size, min(steps, CAPTURE_USES), seeds))
    runs = [replica.generate(request) for request in requests]
    stages = {stage: statistics.median(run.ends[0].stages_ms[stage] for run in runs) for stage in _STAGES}
    return {"topic": "image", **labels, "size": size_name(size), "steps": steps, "images": len(seeds)} | {
        "seconds": round(statistics.median(run.seconds for run in runs), 4),
        **{f"{stage}_ms": round(stage_ms, 3) for stage, stage_ms in stages.items()},
    }


def _encoding_row(replica: Replica, labels: Row, size: Size) -> Row:
    """The time to encode an input image; the first of two requests is not counted."""
    width, height = size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    request = make_request(size, 2, image=image, strength=0.5)
    _, run = (replica.generate(request) for _ in range(2))
    return {
        "topic": "encode_image",
        **labels,
        "size": size_name(size),
        "ms": round(run.ends[0].stages_ms["encode_image"], 3),
    }


def _recompilation_rows(scale: Scale, replica: Replica, labels: Row) -> Iterator[Row]:
    """Each change is requested twice: without recompilation, the first request takes longer only by the capture of a
    CUDA graph."""
    lora, other = (make_lora(replica.checkpoint.transformer, rank, seed=rank) for rank in (16, 32))
    size = scale.medium
    steps = CAPTURE_USES
    changes = {
        "a new size": make_request(scale.new_size, steps),
        "a LoRA": make_request(size, steps, loras={"a": lora}),
        "another LoRA": make_request(size, steps, loras={"b": other}),
        "another LoRA scale": make_request(size, steps, loras={"a": lora}, scale=0.3),
        "two LoRAs": make_request(size, steps, loras={"a": lora, "b": other}),
        "a batch of 3": make_request(size, steps, seeds=(0, 1, 2)),
    }
    for change, request in changes.items():
        graphs = compiled_graphs()
        first, second = (replica.generate(request) for _ in range(2))
        yield {"topic": "recompilation", **labels, "change": change} | {
            "new_graphs": compiled_graphs() - graphs,
            "first_s": round(first.seconds, 4),
            "second_s": round(second.seconds, 4),
        }


def _memory_row(replica: Replica, labels: Row) -> Row:
    weights_gb = weight_bytes(replica.checkpoint.transformer) / 1e9
    return {"topic": "memory", "what": "replica", **labels} | {
        "transformer_gb": round(weights_gb, 4),
        "peak_gb": peak_gb(replica.checkpoint.device),
    }
