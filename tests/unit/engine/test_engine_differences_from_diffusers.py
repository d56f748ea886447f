"""Intended differences from diffusers' pipelines."""

import numpy as np
import pytest
import torch

from serve.engine.checkpoint import Checkpoint
from serve.engine.request import Completed
from serve.events import Started, StepDone
from tests.unit.engine import diffusers_reference
from tests.unit.engine.checkpoints import Checkpoints
from tests.unit.engine.requests import Mode, make_image, make_request, run_request


@pytest.fixture
def checkpoint(checkpoints: Checkpoints) -> Checkpoint:
    return checkpoints.get("dev", "float32")


@pytest.mark.parametrize("steps", [1, 4])
def test_strength_0_returns_the_input_image_through_the_vae(checkpoint: Checkpoint, steps: int) -> None:
    """diffusers' pipelines raise an error."""
    request = make_request("image_to_image", strength=0.0, steps=steps, seeds=(3,))
    with pytest.raises(ValueError, match="< 1"):
        diffusers_reference.latents(checkpoint, request)
    recorder = run_request(checkpoint, request)
    values = torch.from_numpy(2.0 * (make_image((96, 64)).astype(np.float32) / 255.0) - 1.0)
    posterior = checkpoint.vae.encode(values.unsqueeze(0).permute(0, 3, 1, 2)).latent_dist
    decoded = checkpoint.vae.decode(posterior.sample(torch.Generator().manual_seed(3))).sample[0]
    expected = (decoded * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0) * 255
    assert np.abs(recorder.pixels[0] - expected.numpy()).max() <= 1
    assert isinstance(recorder.events[0], Started)
    assert not any(isinstance(event, StepDone) for event in recorder.events)
    assert isinstance(recorder.final_event, Completed)
    assert "denoise" not in recorder.final_event.stages_ms
    assert recorder.final_event.mean_batch == 0


@pytest.mark.parametrize(("steps", "strength"), [(4, 0.8), (2, 0.6), (3, 0.99)])
def test_strength_below_1_skips_at_least_one_step(checkpoint: Checkpoint, steps: int, strength: float) -> None:
    """A diffusers pipeline starts at step int(N - N * strength) = 0, from pure noise, and so ignores the input image.

    The engine starts at step 1, where a pipeline starts with strength 1 - 1 / N.
    """
    request = make_request("image_to_image", steps=steps, strength=strength)
    recorder = run_request(checkpoint, request)
    assert not torch.equal(recorder.latents[0], diffusers_reference.latents(checkpoint, request))
    assert torch.equal(recorder.latents[0], diffusers_reference.latents(checkpoint, request, strength=1 - 1 / steps))
    assert recorder.steps == steps - 1


@pytest.mark.parametrize("mode", ["image_to_image", "inpainting"])
def test_single_step_starts_at_the_strength(checkpoint: Checkpoint, mode: Mode) -> None:
    """A diffusers pipeline starts from pure noise and so ignores the input image."""
    request = make_request(mode, steps=1, strength=0.4)
    latents = run_request(checkpoint, request).latents[0]
    assert not torch.equal(latents, diffusers_reference.latents(checkpoint, request))
    assert torch.equal(latents, diffusers_reference.latents(checkpoint, request, strength=1.0, sigmas=[0.4]))


def test_inpainting_keeps_unmasked_pixels_exactly(checkpoint: Checkpoint) -> None:
    """A diffusers pipeline returns these pixels as the VAE decodes them."""
    request = make_request("inpainting")
    assert request.image is not None
    assert request.mask is not None
    pixels, reference = run_request(checkpoint, request).pixels[0], diffusers_reference.pixels(checkpoint, request)
    kept = request.mask < 128
    assert np.array_equal(pixels[kept], request.image[kept])
    assert not np.array_equal(reference[kept], request.image[kept])
    assert np.array_equal(pixels[~kept], reference[~kept])


def test_size_that_is_not_a_multiple_of_the_stride_is_kept(checkpoint: Checkpoint) -> None:
    """A diffusers pipeline rounds the size down."""
    request = make_request(size=(100, 72))
    assert diffusers_reference.pixels(checkpoint, request).shape == (64, 96, 3)
    assert run_request(checkpoint, request).pixels[0].shape == (72, 100, 3)
