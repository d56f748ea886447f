"""The engine on a GPU: single images match diffusers, and batched images match single ones, up to kernel rounding."""

from typing import Any

import pytest
import torch

from serve.engine.request import GenerationRequest
from serve.settings import Precision
from tests.gpu.helpers import SIZE, LoadOnGpu
from tests.images import psnr_db
from tests.unit.engine import diffusers_reference
from tests.unit.engine.requests import make_request, run_request, run_requests

MIN_BATCH_PSNR_DB = 40
"""Between an image from a batch and the same image generated alone, which may use other GPU kernels."""


def requests_of_all_modes() -> list[tuple[int, GenerationRequest]]:
    """Each request with the scheduler iteration before which it is added."""
    return [
        (0, make_request(size=SIZE, seeds=(1, 2), steps=8)),
        (2, make_request("image_to_image", size=SIZE, seeds=(3,), steps=6, prompt="a gold star", guidance=7.0)),
        (3, make_request("inpainting", size=SIZE, seeds=(4,), steps=5, prompt="")),
    ]


@pytest.mark.parametrize("mode", ["text_to_image", "image_to_image", "inpainting"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_latents_match_diffusers(load_on_gpu: LoadOnGpu, mode: Any, precision: Precision) -> None:
    checkpoint = load_on_gpu("dev", precision, vae="float32" if precision == "float32" else "bfloat16")
    request = make_request(mode, size=SIZE)
    actual, expected = (
        run_request(checkpoint, request, cuda_graphs=False).latents[0].float(),
        diffusers_reference.latents(checkpoint, request).float(),
    )
    assert (actual - expected).norm() <= (1e-4 if precision == "float32" else 1e-2) * expected.norm()


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_batched_images_are_close_to_single_images(load_on_gpu: LoadOnGpu, precision: Precision) -> None:
    checkpoint, arrivals = load_on_gpu("dev", precision), requests_of_all_modes()
    scheduler, results = run_requests(checkpoint, arrivals)
    assert scheduler.executor.batches < scheduler.executor.image_steps
    for result, (_, request) in zip(results, arrivals, strict=True):
        for batched, single in zip(result.pixels, run_request(checkpoint, request).pixels, strict=True):
            assert psnr_db(batched, single) >= MIN_BATCH_PSNR_DB


def test_latents_are_bit_equal_with_batching_disabled(load_on_gpu: LoadOnGpu) -> None:
    checkpoint, arrivals = load_on_gpu(), requests_of_all_modes()
    _, results = run_requests(checkpoint, arrivals, disable_batching=True, cuda_graphs=False)
    for result, (_, request) in zip(results, arrivals, strict=True):
        single = run_request(checkpoint, request, cuda_graphs=False)
        assert all(torch.equal(result.latents[image], latents) for image, latents in single.latents.items())


def test_noise_comes_from_the_cpu_generator(load_on_gpu: LoadOnGpu) -> None:
    """A seed must give the same image on every device."""
    checkpoint = load_on_gpu()
    seed = 7
    request = make_request(size=SIZE, steps=1, guidance=1.0, seeds=(seed,))
    cpu_generator = torch.Generator("cpu").manual_seed(seed)
    gpu_generator = torch.Generator(checkpoint.device).manual_seed(seed)
    with_cpu_noise = diffusers_reference.latents(checkpoint, request, generator=cpu_generator).float()
    with_gpu_noise = diffusers_reference.latents(checkpoint, request, generator=gpu_generator).float()
    actual = run_request(checkpoint, request).latents[0].float()
    assert (actual - with_cpu_noise).norm() < 0.1 * (actual - with_gpu_noise).norm()
