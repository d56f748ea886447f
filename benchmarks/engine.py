"""Measures the time of one denoising step by precision, image size and batch size, without Ray and HTTP.

    scripts/bench engine
    scripts/bench engine --geometry flux1-dev --device cuda --batches 1 2 4 8

Each step runs through the engine's own `Denoiser`. All images of a batch are at the same step of the same schedule.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch

from benchmarks.engine_runs import size_name
from benchmarks.geometry import GEOMETRIES, flops_per_pass, make_checkpoint
from benchmarks.report import print_progress, report
from serve.engine.checkpoint import Checkpoint
from serve.engine.compute_dtype import dtype_name
from serve.engine.denoiser import Denoiser
from serve.engine.device import empty_cache, synchronize
from serve.engine.latents import LatentSpace
from serve.engine.lora_manager import NO_LORAS, ActiveLoras
from serve.engine.prompt_encoder import EncodedPrompt
from serve.engine.quantize import weight_bytes
from serve.engine.request_state import ImageState
from serve.engine.sigmas import make_sigma_schedule
from serve.model_specs import Size
from serve.settings import PoolSettings, Precision

WARMUP_STEPS = 2
DEFAULT_POOL = PoolSettings(model="")


def measure_step_times(
    checkpoint: Checkpoint, size: Size, batch: int, steps: int, pool: PoolSettings = DEFAULT_POOL
) -> list[float]:
    """The duration in seconds of each of `steps` steps with `batch` images, after `WARMUP_STEPS` untimed steps."""
    denoiser = Denoiser(checkpoint, pool)
    images = make_image_states(checkpoint, denoiser, size, batch, WARMUP_STEPS + steps)
    times_s = []
    for _ in range(WARMUP_STEPS + steps):
        synchronize(checkpoint.device)
        start_s = time.perf_counter()
        new_latents = denoiser.step(images)
        synchronize(checkpoint.device)
        times_s.append(time.perf_counter() - start_s)
        for image, latents in zip(images, new_latents, strict=True):
            image.latents, image.step = latents, image.step + 1
    return times_s[WARMUP_STEPS:]


def make_image_states(
    checkpoint: Checkpoint,
    denoiser: Denoiser,
    size: Size,
    batch: int,
    steps: int,
    active_loras: Sequence[ActiveLoras] = (NO_LORAS,),
) -> list[ImageState]:
    """`batch` images before their first step, with `active_loras` in turns.

    Each has its own noise; all share the same random prompt embeds.
    """
    space = LatentSpace(checkpoint)
    grid = space.grid(size)
    config, dtype = checkpoint.transformer.config, checkpoint.transformer.dtype
    generator = torch.Generator().manual_seed(0)

    def random_tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(checkpoint.device, dtype)

    embeds = random_tensor(1, checkpoint.max_sequence_length, config.joint_attention_dim)
    prompt = EncodedPrompt(embeds, random_tensor(1, config.pooled_projection_dim), warnings=())
    schedule = make_sigma_schedule(checkpoint.noise_scheduler_config, grid.tokens, steps, strength=None)
    conditionings = [denoiser.condition(prompt, space.img_ids(grid), schedule, 3.5, loras) for loras in active_loras]
    return [
        ImageState(
            index=index,
            conditioning=conditionings[index % len(active_loras)],
            schedule=schedule,
            grid=grid,
            latents=space.noise(torch.Generator().manual_seed(index), grid),
            active_loras=active_loras[index % len(active_loras)],
        )
        for index in range(batch)
    ]


def measure_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each precision, size and batch. The row of a batch that runs out of memory has the key `failed`."""
    for precision in options.precisions:
        print_progress(f"{precision}: making the checkpoint")
        checkpoint = make_checkpoint(options.geometry, precision, options.device)
        weights_gb = weight_bytes(checkpoint.transformer) / 1e9
        for size in options.sizes:
            tokens = LatentSpace(checkpoint).grid(size).tokens
            flops = flops_per_pass(checkpoint.transformer, tokens, checkpoint.max_sequence_length)
            for batch in options.batches:
                row = {"precision": precision, "size": size_name(size), "batch": batch}
                timings = _measure_batch(checkpoint, size, batch, options.steps, flops)
                yield (
                    row
                    | {"compute_dtype": dtype_name(checkpoint.transformer.dtype), "weights_gb": round(weights_gb, 4)}
                    | timings
                )
        del checkpoint
        empty_cache(torch.device(options.device))


def _measure_batch(checkpoint: Checkpoint, size: Size, batch: int, steps: int, flops: int) -> dict[str, Any]:
    try:
        times_s = measure_step_times(checkpoint, size, batch, steps)
    except torch.OutOfMemoryError:
        empty_cache(checkpoint.device)
        return {"failed": "out of memory"}
    median_s = statistics.median(times_s)
    return {
        "step_ms": round(1000 * median_s, 2),
        "slowest_step_ms": round(1000 * max(times_s), 2),
        "step_ms_per_image": round(1000 * median_s / batch, 2),
        "tflops_per_s": round(batch * flops / median_s / 1e12, 3),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse_options(arguments)
    torch.set_num_threads(options.threads)
    total = len(options.precisions) * len(options.sizes) * len(options.batches)
    rows = []
    for row in measure_rows(options):
        rows.append(row)
        print_progress(f"[{len(rows)}/{total}] " + ", ".join(f"{name} {value}" for name, value in row.items()))
    question = "how long does one denoising step take, by precision, size and batch?"
    report(question, vars(options), {"device": _describe_device(options.device), "rows": rows})


def _parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="embedded", help="size of the transformer")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precisions", choices=get_args(Precision), nargs="+", default=["bf16", "fp8"])
    parser.add_argument("--sizes", type=_size, nargs="+", default=[(512, 512), (1024, 1024)], metavar="WxH")
    parser.add_argument("--batches", type=_positive, nargs="+", default=[1, 4], metavar="N", help="batch sizes")
    parser.add_argument("--steps", type=_positive, default=5, metavar="N", help="timed steps for each row")
    parser.add_argument("--threads", type=_positive, default=1, metavar="N", help="torch's CPU threads")
    return parser.parse_args(arguments)


def _size(text: str) -> Size:
    width, _, height = text.partition("x")
    return _positive(width), _positive(height)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _describe_device(name: str) -> dict[str, Any]:
    if name == "cpu":
        return {"name": "cpu"}
    properties = torch.cuda.get_device_properties(0)
    return {"name": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1), "cuda": torch.version.cuda}


if __name__ == "__main__":
    main()
