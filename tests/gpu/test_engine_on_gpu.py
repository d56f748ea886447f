"""On the card as on a CPU, up to how kernels round: diffusers' pictures alone, and the same ones in a batch."""

from typing import Any

import numpy as np
import pytest
import torch

from serve.engine.request import GenerationRequest
from serve.model_specs import ImageArray
from serve.settings import Precision
from tests.gpu.conftest import Load
from tests.unit.engine import diffusers_reference
from tests.unit.engine.requests import make_request, run_request, run_requests

SIZE = (256, 192)
BATCH_PSNR_DB = 40
"""Least likeness of a picture drawn in a batch to the same drawn alone: a GPU's kernels are chosen by the batch."""


def psnr_db(one: ImageArray, other: ImageArray) -> float:
    error = np.mean((one.astype(float) - other) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def jobs_of_all_kinds() -> list[tuple[int, GenerationRequest]]:
    return [
        (0, make_request(size=SIZE, seeds=(1, 2), steps=8)),
        (2, make_request("image_to_image", size=SIZE, seeds=(3,), steps=6, prompt="a gold star", guidance=7.0)),
        (3, make_request("inpainting", size=SIZE, seeds=(4,), steps=5, prompt="")),
    ]


@pytest.mark.parametrize("mode", ["text_to_image", "image_to_image", "inpainting"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_alone_it_draws_what_diffusers_draws(on_gpu: Load, mode: Any, precision: Precision) -> None:
    checkpoint = on_gpu("dev", precision, vae="float32" if precision == "float32" else "bfloat16")
    job = make_request(mode, size=SIZE)
    ours, theirs = run_request(checkpoint, job).latents[0].float(), diffusers_reference.latents(checkpoint, job).float()
    assert (ours - theirs).norm() <= (1e-4 if precision == "float32" else 1e-2) * theirs.norm()


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_in_a_batch_pictures_are_those_drawn_alone_within_a_tolerance(on_gpu: Load, precision: Precision) -> None:
    checkpoint, jobs = on_gpu("dev", precision), jobs_of_all_kinds()
    loop, sittings = run_requests(checkpoint, jobs)
    assert loop.executor.batches < loop.executor.image_steps
    for sitting, (_, job) in zip(sittings, jobs, strict=True):
        for shared, alone in zip(sitting.pixels, run_request(checkpoint, job).pixels, strict=True):
            assert psnr_db(shared, alone) >= BATCH_PSNR_DB


def test_with_the_switch_they_are_the_same_to_the_bit(on_gpu: Load) -> None:
    checkpoint, jobs = on_gpu(), jobs_of_all_kinds()
    _, sittings = run_requests(checkpoint, jobs, disable_batching=True)
    for sitting, (_, job) in zip(sittings, jobs, strict=True):
        alone = run_request(checkpoint, job)
        assert all(torch.equal(sitting.latents[image], latents) for image, latents in alone.latents.items())


def test_the_noise_is_that_of_a_cpu(on_gpu: Load) -> None:
    """So that a seed means the same picture on every device, and a user can repeat it."""
    checkpoint = on_gpu()
    job = make_request(size=SIZE, steps=1, guidance=1.0)
    same = diffusers_reference.latents(
        checkpoint, job, generator=torch.Generator("cpu").manual_seed(job.seeds[0])
    ).float()
    other = diffusers_reference.latents(
        checkpoint, job, generator=torch.Generator(checkpoint.device).manual_seed(7)
    ).float()
    ours = run_request(checkpoint, job).latents[0].float()
    assert (ours - same).norm() < 0.1 * (ours - other).norm()
