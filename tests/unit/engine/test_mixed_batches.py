"""Whoever shares its passes, a picture is the one that it would be alone."""

from typing import Any

import numpy as np
import pytest
import torch

from serve.engine.request import Completed, GenerationRequest
from serve.settings import Precision
from test_checkpoints.networks import Geometry
from tests.unit.engine.checkpoints import SMALL, WIDE, Checkpoints
from tests.unit.engine.requests import make_request, run_request, run_requests


def _mixed_jobs(size: tuple[int, int]) -> list[tuple[int, GenerationRequest]]:
    """Of one size, and different in all else; each with the round in which it arrives."""
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
    ("precision", "geometry", "size"),
    [
        ("bf16", SMALL, (112, 96)),
        ("fp8", SMALL, (96, 64)),
        ("bf16", WIDE, (96, 64)),
    ],
)
def test_latents_in_a_mixed_batch_equal_those_alone_to_the_bit(
    checkpoints: Checkpoints, precision: Precision, geometry: Geometry, size: tuple[int, int]
) -> None:
    checkpoint, jobs = checkpoints.get("dev", precision, geometry=geometry), _mixed_jobs(size)
    loop, sittings = run_requests(checkpoint, jobs)
    solos = [run_request(checkpoint, job) for _, job in jobs]
    assert loop.executor.image_steps == sum(alone.steps for alone in solos)
    assert loop.executor.batches < loop.executor.image_steps / 2
    for sitting, alone in zip(sittings, solos, strict=True):
        assert sitting.latents.keys() == alone.latents.keys()
        assert all(torch.equal(sitting.latents[image], latents) for image, latents in alone.latents.items())
        assert np.array_equal(sitting.pixels, alone.pixels)


def test_in_float32_a_mixed_batch_is_within_a_millionth_and_one_level(checkpoints: Checkpoints) -> None:
    checkpoint, jobs = checkpoints.get("dev", "float32"), _mixed_jobs((96, 64))
    _, sittings = run_requests(checkpoint, jobs)
    for sitting, (_, job) in zip(sittings, jobs, strict=True):
        alone = run_request(checkpoint, job)
        for image, latents in alone.latents.items():
            assert (sitting.latents[image] - latents).abs().max() <= 1e-6 * latents.abs().max()
        for shared, pixels in zip(sitting.pixels, alone.pixels, strict=True):
            assert np.abs(shared.astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("mode", ["text_to_image", "image_to_image", "inpainting"])
def test_each_image_equals_the_single_image_of_its_seed(checkpoints: Checkpoints, mode: Any) -> None:
    checkpoint = checkpoints.get("dev", "bf16")
    together = run_request(checkpoint, make_request(mode, seeds=(2**64 - 1, 0, 1, 2)))
    assert len({pixels.tobytes() for pixels in together.pixels}) == 4
    for image, seed in enumerate((2**64 - 1, 0, 1, 2)):
        alone = run_request(checkpoint, make_request(mode, seeds=(seed,)))
        assert torch.equal(together.latents[image], alone.latents[0])
        assert np.array_equal(together.pixels[image], alone.pixels[0])


def test_other_sizes_and_lengths_beside_it_change_nothing(checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints.get("dev", "bf16")
    job = make_request(seeds=(1, 2), steps=6)
    others = [
        (1, make_request(size=(64, 64), steps=9)),
        (0, make_request("inpainting", size=(112, 96))),
        (3, make_request(size=(100, 60), steps=2)),
    ]
    _, (sitting, *_) = run_requests(checkpoint, [(0, job), *others], max_batch=2)
    assert np.array_equal(sitting.pixels, run_request(checkpoint, job).pixels)


def test_the_same_job_twice_gives_the_same_bytes(checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints.get("schnell", "fp8")
    job = make_request("inpainting", guidance=None)
    assert np.array_equal(run_request(checkpoint, job).pixels, run_request(checkpoint, job).pixels)


def test_alone_by_setting_no_pass_is_shared(checkpoints: Checkpoints) -> None:
    jobs = [(0, make_request(seeds=(1, 2), steps=2)), (0, make_request(seeds=(3,), steps=3))]
    loop, sittings = run_requests(checkpoints.get("dev", "bf16"), jobs, disable_batching=True)
    assert loop.executor.batches == loop.executor.image_steps == 2 * 2 + 3
    assert [_mean_batch(sitting.final_event) for sitting in sittings] == [1.0, 1.0]


def test_the_mean_batch_counts_all_who_shared_the_passes(checkpoints: Checkpoints) -> None:
    """Two images alone for one round, then with a third one for the three steps left."""
    jobs = [(0, make_request(seeds=(1, 2), steps=4)), (1, make_request(seeds=(3,), steps=3))]
    _, (pair, single) = run_requests(checkpoints.get("dev", "bf16"), jobs)
    assert _mean_batch(pair.final_event) == (2 + 3 + 3 + 3) / 4
    assert _mean_batch(single.final_event) == 3


def _mean_batch(end: object) -> float:
    assert isinstance(end, Completed)
    return end.mean_batch
