"""How long does one denoising step take, by precision, size and batch? (the engine alone: no Ray, no HTTP)

    scripts/bench engine
    scripts/bench engine --geometry flux1-dev --device cuda --batches 1 2 4 8

Each step goes through the engine's own stepper, over images at the same place of the same schedule.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch

from benchmarks.geometry import GEOMETRIES, flops_per_pass, make_checkpoint
from benchmarks.report import report
from serve.engine.checkpoint import Checkpoint
from serve.engine.denoiser import Denoiser
from serve.engine.device import empty_cache, synchronize
from serve.engine.latents import LatentSpace
from serve.engine.prompt_encoder import PromptEmbeds
from serve.engine.quantize import weight_bytes
from serve.engine.request_state import ImageState
from serve.engine.sigmas import make_sigma_schedule
from serve.model_specs import Size
from serve.settings import Precision

WARM_UP_STEPS = 2


def measure(checkpoint: Checkpoint, size: Size, batch: int, steps: int) -> list[float]:
    """Seconds of each of `steps` steps of `batch` images, after some that do not count."""
    stepper, drafts = Denoiser(checkpoint), make_drafts(checkpoint, size, batch, WARM_UP_STEPS + steps)
    times_s = []
    for _ in range(WARM_UP_STEPS + steps):
        synchronize(checkpoint.device)
        begun = time.perf_counter()
        moved = stepper.step(drafts)
        synchronize(checkpoint.device)
        times_s.append(time.perf_counter() - begun)
        for draft, latents in zip(drafts, moved, strict=True):
            draft.latents, draft.step = latents, draft.step + 1
    return times_s[WARM_UP_STEPS:]


def make_drafts(checkpoint: Checkpoint, size: Size, batch: int, steps: int) -> list[ImageState]:
    """Images before their first step, each of its own noise, all of the same random numbers for a prompt."""
    space = LatentSpace(checkpoint)
    grid = space.grid(size)
    config, dtype = checkpoint.transformer.config, checkpoint.transformer.dtype
    numbers = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=numbers).to(checkpoint.device, dtype)

    embeddings = random(1, checkpoint.max_sequence_length, config.joint_attention_dim)
    text = PromptEmbeds(embeddings, random(1, config.pooled_projection_dim), warnings=())
    schedule = make_sigma_schedule(checkpoint.scheduler_config, grid.tokens, steps, strength=None)
    return [
        ImageState(
            index=image,
            prompt_embeds=text,
            guidance=3.5,
            sigmas=schedule,
            grid=grid,
            img_ids=space.img_ids(grid),
            latents=space.noise(torch.Generator().manual_seed(image), grid),
        )
        for image in range(batch)
    ]


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each precision, size and batch; a batch that does not fit the device's memory says so."""
    for precision in options.precisions:
        _tell(f"{precision}: making the checkpoint")
        checkpoint = make_checkpoint(options.geometry, precision, options.device)
        weights_gb = weight_bytes(checkpoint.transformer) / 1e9
        for size in options.sizes:
            tokens = LatentSpace(checkpoint).grid(size).tokens
            flops = flops_per_pass(checkpoint.transformer, tokens, checkpoint.max_sequence_length)
            for batch in options.batches:
                row = {"precision": precision, "size": "x".join(map(str, size)), "batch": batch}
                yield row | {"weights_gb": round(weights_gb, 4)} | _timed(checkpoint, size, batch, options.steps, flops)
        del checkpoint
        empty_cache(torch.device(options.device))


def _timed(checkpoint: Checkpoint, size: Size, batch: int, steps: int, flops: int) -> dict[str, Any]:
    try:
        times_s = measure(checkpoint, size, batch, steps)
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
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    total, done = len(options.precisions) * len(options.sizes) * len(options.batches), []
    for row in rows(options):
        done.append(row)
        _tell(f"[{len(done)}/{total}] " + ", ".join(f"{name} {value}" for name, value in row.items()))
    report(str(__doc__).splitlines()[0], vars(options), {"device": _device(options.device), "rows": done})


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="embedded")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precisions", choices=get_args(Precision), nargs="+", default=["bf16", "fp8"])
    parser.add_argument("--sizes", type=_size, nargs="+", default=[(512, 512), (1024, 1024)], metavar="WxH")
    parser.add_argument("--batches", type=_positive, nargs="+", default=[1, 4], metavar="N")
    parser.add_argument("--steps", type=_positive, default=5, metavar="N", help="steps that are timed for each row")
    parser.add_argument("--threads", type=_positive, default=1, metavar="N", help="CPU threads of torch")
    return parser.parse_args(arguments)


def _size(text: str) -> Size:
    width, _, height = text.partition("x")
    return _positive(width), _positive(height)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _device(name: str) -> dict[str, Any]:
    if name == "cpu":
        return {"name": "cpu"}
    properties = torch.cuda.get_device_properties(0)
    return {"name": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1), "cuda": torch.version.cuda}


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
