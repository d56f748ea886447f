"""Measures steps with LoRAs, and how long loading one takes."""

from collections.abc import Iterator, Mapping
from contextlib import closing

from benchmarks.engine_runs import make_lora, make_request, peak_gb, size_name
from benchmarks.gpu_check.scale import SCALES, make_pool
from benchmarks.gpu_check.step_benchmark import Row, StepBenchmark, median_ms
from serve.lora.weights import LoraWeights
from serve.model_specs import Size
from serve.settings import Precision

_RANKS = {"rank-16-0": 16, "rank-16-1": 16, "rank-64-0": 64, "rank-64-1": 64}
_BATCHES: tuple[tuple[tuple[str, ...], ...], ...] = (
    ((),),
    (("rank-16-0",),),
    (("rank-64-0",),),
    (("rank-16-0", "rank-16-1"),),
    ((), (), (), ()),
    (("rank-16-0",), ("rank-64-0",), ("rank-16-1",), ("rank-64-1",)),
)
"""The LoRAs of each image in a batch. A batch without LoRAs comes before the others of its size."""


def measure_loras(scale_name: str, precision: Precision) -> Iterator[Row]:
    """Rows of steps without and with LoRAs, each compared with the same batch without, and of loading a LoRA."""
    scale = SCALES[scale_name]
    with closing(StepBenchmark(scale, *make_pool(scale, "dev", precision))) as benchmark:
        transformer = benchmark.checkpoint.transformer
        loras = {name: make_lora(transformer, rank, seed) for seed, (name, rank) in enumerate(_RANKS.items())}
        yield from _step_rows(benchmark, precision, loras)
        yield from _load_rows(benchmark, precision, loras)
        yield {
            "topic": "memory",
            "what": "LoRA benchmark",
            "precision": precision,
            "peak_gb": peak_gb(benchmark.checkpoint.device),
        }


def _step_rows(benchmark: StepBenchmark, precision: Precision, loras: Mapping[str, LoraWeights]) -> Iterator[Row]:
    without: dict[tuple[Size, int], float] = {}
    for size in (benchmark.scale.large, benchmark.scale.medium):
        for names in _BATCHES:
            batch = len(names)
            chosen = [{name: loras[name] for name in image} for image in names]
            measured = benchmark.measure_step(size, batch, chosen if any(names) else ())
            base_ms = without.setdefault((size, batch), measured["step_ms"])
            yield {
                "topic": "lora",
                "precision": precision,
                "size": size_name(size),
                "batch": batch,
                "ranks": [[_RANKS[name] for name in image] for image in names],
                **measured,
                "extra": round(measured["step_ms"] / base_ms - 1, 4),
            }


def _load_rows(benchmark: StepBenchmark, precision: Precision, loras: Mapping[str, LoraWeights]) -> Iterator[Row]:
    """The stage `lora` of a request: its LoRA is converted and copied to the device.

    Each load has a key of its own, so that the LoRA is not resident. The first load is not counted.
    """
    for rank in (16, 64):
        weights = loras[f"rank-{rank}-0"]
        requests = [
            make_request(benchmark.scale.small, 1, loras={f"load-{rank}-{number}": weights})
            for number in range(1 + max(2, benchmark.scale.repeats))
        ]
        stages = [benchmark.run([request]).ends[0].stages_ms for request in requests][1:]
        yield {"topic": "lora_load", "precision": precision, "rank": rank, "ms": median_ms(stages, "lora")}
