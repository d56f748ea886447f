"""Measures steps with LoRAs, and how long loading one takes."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from benchmarks.gpu_check.runs import Bench, Row, make_request, median_ms, peak_gb, size_name
from benchmarks.gpu_check.scale import SCALES, make_pool
from serve.engine.checkpoint import Checkpoint
from serve.lora.weights import LoraWeights, LowRank, pack, unpack
from serve.model_specs import Size
from serve.settings import Precision

_NOISE_VALUES = 2**22
_STANDARD_DEVIATION = 0.02


def measure_loras(scale_name: str, precision: Precision) -> Iterator[Row]:
    """Rows of steps without and with LoRAs, each compared with the same batch without, and of loading a LoRA."""
    scale = SCALES[scale_name]
    bench = Bench(scale, *make_pool(scale, "dev", precision))
    loras = {
        f"rank-{rank}-{number}": make_lora(bench.checkpoint, rank, 100 * rank + number)
        for rank in (16, 64)
        for number in range(2)
    }
    without: dict[tuple[Size, int], float] = {}
    for size in (scale.large, scale.medium):
        for names in _lora_batches():
            batch = len(names)
            chosen = [{name: loras[name] for name in image} for image in names]
            measured = bench.measure_step(size, batch, chosen if any(names) else ())
            base_ms = without.setdefault((size, batch), measured["step_ms"])
            yield {
                "topic": "lora",
                "precision": precision,
                "size": size_name(size),
                "batch": batch,
                "ranks": [[loras[name].slots for name in image] for image in names],
                **measured,
                "extra": round(measured["step_ms"] / base_ms - 1, 4),
            }
    yield from _load_rows(bench, precision, loras)
    yield {
        "topic": "memory",
        "what": "LoRA benchmark",
        "precision": precision,
        "peak_gb": peak_gb(bench.checkpoint.device),
    }


def _lora_batches() -> list[list[tuple[str, ...]]]:
    """The names of the LoRAs of each image in a batch. The batch without LoRAs comes before those of its size."""
    return [
        [()],
        [("rank-16-0",)],
        [("rank-64-0",)],
        [("rank-16-0", "rank-16-1")],
        [(), (), (), ()],
        [("rank-16-0",), ("rank-64-0",), ("rank-16-1",), ("rank-64-1",)],
    ]


def _load_rows(bench: Bench, precision: Precision, loras: Mapping[str, LoraWeights]) -> Iterator[Row]:
    """Each load has a key of its own, so that the LoRA is not resident. The first load is not counted."""
    for rank in (16, 64):
        weights = loras[f"rank-{rank}-0"]
        requests = [
            make_request(bench.scale.small, 1, loras={f"load-{rank}-{number}": weights})
            for number in range(1 + max(2, bench.scale.repeats))
        ]
        stages = [bench.run([request])[0].stages_ms for request in requests][1:]
        yield {"topic": "lora_load", "precision": precision, "rank": rank, "ms": median_ms(stages, "lora")}


def make_lora(checkpoint: Checkpoint, rank: int, seed: int) -> LoraWeights:
    """A LoRA on every linear layer of the transformer, as the service has it: views of one block.

    Its values repeat after `_NOISE_VALUES`, because making hundreds of millions of random numbers takes seconds.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = (_STANDARD_DEVIATION * torch.randn(_NOISE_VALUES, generator=generator)).half()

    def matrix(rows: int, columns: int) -> Tensor:
        copies = -(-rows * columns // _NOISE_VALUES)
        return noise.repeat(copies)[: rows * columns].view(rows, columns)

    layers = {
        path: LowRank(matrix(rank, linear.in_features), matrix(linear.out_features, rank))
        for path, linear in checkpoint.transformer.named_modules()
        if isinstance(linear, nn.Linear)
    }
    return unpack(pack(LoraWeights(transformer=layers, clip={})))
