"""Images in mixed batches equal the same images generated alone."""

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from serve.engine.denoiser import MAX_BATCHES, Denoiser
from serve.engine.request import Completed, EngineEvent, Failed, GenerationRequest, ImageReady
from serve.engine.request_state import ImageState
from serve.engine.scheduler import Scheduler
from serve.engine.watchdog import Watchdog
from serve.errors import EngineFailed
from serve.events import StepDone
from serve.settings import Fp8Kernel, PoolSettings, Precision
from test_checkpoints.networks import Geometry
from tests.unit.engine.checkpoints import SMALL, WIDE, Checkpoints
from tests.unit.engine.faults import is_first_step_of, with_faulty_steps
from tests.unit.engine.requests import SIZE, Mode, RequestRecorder, make_request, run_request, run_requests


def _mixed_arrivals(size: tuple[int, int]) -> list[tuple[int, GenerationRequest]]:
    """Requests of one size that differ in all other fields, each with the iteration before which it is added."""
    return [
        (0, make_request(size=size, prompt="a red sailboat", seeds=(1,), guidance=3.0, steps=5)),
        (0, make_request(size=size, prompt="a blue fish in the sea " * 30, seeds=(2, 3), guidance=0.0, steps=3)),
        (1, make_request("image_to_image", size=size, prompt="", seeds=(4,), guidance=7.5, steps=3, strength=0.7)),
        (
            2,
            make_request(
                "inpainting", size=size, prompt="a gold star", seeds=(5, 6), guidance=1.0, steps=2, strength=1.0
            ),
        ),
        (3, make_request(size=size, prompt="a red sailboat", seeds=(1,), guidance=3.5, steps=1)),
    ]


@pytest.mark.parametrize(
    ("precision", "geometry", "size", "fp8_kernel"),
    [
        ("bf16", SMALL, (112, 96), "auto"),
        ("fp8", SMALL, (96, 64), "auto"),
        ("fp8", SMALL, (96, 64), "rowwise"),
        ("bf16", WIDE, (96, 64), "auto"),
    ],
)
def test_mixed_batch_latents_equal_single_latents_to_the_bit(
    checkpoints: Checkpoints, precision: Precision, geometry: Geometry, size: tuple[int, int], fp8_kernel: Fp8Kernel
) -> None:
    checkpoint = checkpoints.get("dev", precision, geometry=geometry, fp8_kernel=fp8_kernel)
    arrivals = _mixed_arrivals(size)
    scheduler, recorders = run_requests(checkpoint, arrivals)
    single_runs = [run_request(checkpoint, request) for _, request in arrivals]
    assert scheduler.executor.image_steps == sum(single.steps for single in single_runs)
    assert scheduler.executor.batches < scheduler.executor.image_steps / 2
    for recorder, single in zip(recorders, single_runs, strict=True):
        assert recorder.latents.keys() == single.latents.keys()
        assert all(torch.equal(recorder.latents[image], latents) for image, latents in single.latents.items())
        assert np.array_equal(recorder.pixels, single.pixels)


def test_float32_mixed_batch_is_within_one_millionth_and_one_pixel_level(checkpoints: Checkpoints) -> None:
    checkpoint, arrivals = checkpoints.get("dev", "float32"), _mixed_arrivals((96, 64))
    _, recorders = run_requests(checkpoint, arrivals)
    for recorder, (_, request) in zip(recorders, arrivals, strict=True):
        single = run_request(checkpoint, request)
        for image, latents in single.latents.items():
            assert (recorder.latents[image] - latents).abs().max() <= 1e-6 * latents.abs().max()
        for batched, pixels in zip(recorder.pixels, single.pixels, strict=True):
            assert np.abs(batched.astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("mode", ["text_to_image", "image_to_image", "inpainting"])
def test_each_image_equals_the_single_image_of_its_seed(checkpoints: Checkpoints, mode: Mode) -> None:
    checkpoint = checkpoints.get("dev", "bf16")
    batched = run_request(checkpoint, make_request(mode, seeds=(2**64 - 1, 0, 1, 2)))
    assert len({pixels.tobytes() for pixels in batched.pixels}) == 4
    for image, seed in enumerate((2**64 - 1, 0, 1, 2)):
        single = run_request(checkpoint, make_request(mode, seeds=(seed,)))
        assert torch.equal(batched.latents[image], single.latents[0])
        assert np.array_equal(batched.pixels[image], single.pixels[0])


def test_requests_of_other_sizes_do_not_change_an_image(checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints.get("dev", "bf16")
    request = make_request(seeds=(1, 2), steps=6)
    others = [
        (1, make_request(size=(64, 64), steps=9)),
        (0, make_request("inpainting", size=(112, 96))),
        (3, make_request(size=(100, 60), steps=2)),
    ]
    _, (recorder, *_) = run_requests(checkpoint, [(0, request), *others], max_batch=2)
    assert np.array_equal(recorder.pixels, run_request(checkpoint, request).pixels)


def test_repeated_request_gives_the_same_pixels(checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints.get("schnell", "fp8")
    request = make_request("inpainting", guidance=None)
    assert np.array_equal(run_request(checkpoint, request).pixels, run_request(checkpoint, request).pixels)


def test_disable_batching_runs_one_image_per_batch(checkpoints: Checkpoints) -> None:
    arrivals = [(0, make_request(seeds=(1, 2), steps=2)), (0, make_request(seeds=(3,), steps=3))]
    scheduler, recorders = run_requests(checkpoints.get("dev", "bf16"), arrivals, disable_batching=True)
    assert scheduler.executor.batches == scheduler.executor.image_steps == 2 * 2 + 3
    assert [_mean_batch(recorder.final_event) for recorder in recorders] == [1.0, 1.0]


def test_mean_batch_counts_the_images_of_all_requests(checkpoints: Checkpoints) -> None:
    """Two images run one step without the image of another request, and three steps with it."""
    arrivals = [(0, make_request(seeds=(1, 2), steps=4)), (1, make_request(seeds=(3,), steps=3))]
    _, (pair, single) = run_requests(checkpoints.get("dev", "bf16"), arrivals)
    assert _mean_batch(pair.final_event) == (2 + 3 + 3 + 3) / 4
    assert _mean_batch(single.final_event) == 3


def test_only_the_request_of_the_failing_image_fails(checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints.get("dev", "bf16")
    error = RuntimeError("no such kernel")
    arrivals = [(0, make_request(seeds=seeds)) for seeds in ((1, 2), (3, 4), (5, 6))]
    fails = is_first_step_of(checkpoint, SIZE, 3, 4)
    scheduler, (first, failing, last) = run_requests(with_faulty_steps(checkpoint, fails, error), arrivals)
    assert isinstance(failing.final_event, Failed)
    assert not any(isinstance(event, StepDone | ImageReady) for event in failing.events)
    for recorder, (_, request) in ((first, arrivals[0]), (last, arrivals[2])):
        assert np.array_equal(recorder.pixels, run_request(checkpoint, request).pixels)
    assert not scheduler.has_work


def test_batch_that_runs_out_of_memory_is_retried_in_halves(checkpoints: Checkpoints) -> None:
    def has_more_than_two_images(latents: torch.Tensor) -> bool:
        return len(latents) > 2

    checkpoint = checkpoints.get("dev", "bf16")
    error = torch.OutOfMemoryError("full")
    request = make_request(seeds=(1, 2, 3, 4), steps=3)
    scheduler, (recorder,) = run_requests(
        with_faulty_steps(checkpoint, has_more_than_two_images, error), [(0, request)]
    )
    assert np.array_equal(recorder.pixels, run_request(checkpoint, request).pixels)
    assert (scheduler.executor.batches, scheduler.executor.image_steps) == (2 * 3, 4 * 3)


def test_inputs_of_alternating_batches_are_made_once(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make_batch = Denoiser._make_batch

    def count(denoiser: Denoiser, images: Sequence[ImageState]) -> Any:
        made.append(len(images))
        return make_batch(denoiser, images)

    monkeypatch.setattr(Denoiser, "_make_batch", count)
    arrivals = [(0, make_request(size=size, seeds=(1, 2), steps=5)) for size in (SIZE, (64, 64), (96, 96))]
    run_requests(checkpoints.get("dev", "bf16"), arrivals, scheduling_policy="turns")
    assert made == [2, 2, 2]


def test_few_batches_are_kept(checkpoints: Checkpoints) -> None:
    arrivals = [(0, make_request(size=(64, 64 + 16 * number), steps=5)) for number in range(MAX_BATCHES + 2)]
    kept: list[int] = []
    checkpoint = checkpoints.get("dev", "bf16")
    scheduler = Scheduler(checkpoint, PoolSettings(model="", scheduling_policy="turns"), Watchdog())
    scheduler.add([RequestRecorder(number, request).state for number, (_, request) in enumerate(arrivals)], ())
    while scheduler.has_work:
        scheduler.step()
        kept.append(len(scheduler.executor.denoiser._batches))
    assert max(kept) == MAX_BATCHES
    assert kept[-1] == 0


def test_batch_of_an_ended_request_is_not_kept(checkpoints: Checkpoints) -> None:
    scheduler = Scheduler(checkpoints.get("dev", "bf16"), PoolSettings(model=""), Watchdog())
    cancelled, other = (RequestRecorder(number, make_request(seeds=(number,), steps=9)) for number in range(2))
    scheduler.add([cancelled.state, other.state], ())
    scheduler.step()
    images = [weakref.ref(image.latents) for image in cancelled.state.images or ()]
    cancelled.state.cancel_token.cancelled = True
    scheduler._drop_ended()
    cancelled.state.images = None
    cancelled.latents.clear()
    gc.collect()
    assert [image() for image in images] == [None]
    scheduler.fail_all(EngineFailed())


def _mean_batch(event: EngineEvent) -> float:
    assert isinstance(event, Completed)
    return event.mean_batch
