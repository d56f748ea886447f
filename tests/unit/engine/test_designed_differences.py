"""Where we differ from diffusers' pipelines on purpose, and how."""

import numpy as np
import pytest
import torch

from serve.engine.checkpoint import Checkpoint
from serve.engine.request import Completed
from serve.events import Started, StepDone
from tests.unit.engine import diffusers_reference
from tests.unit.engine.checkpoints import Checkpoints
from tests.unit.engine.requests import make_image, make_request, run_request


@pytest.fixture
def checkpoint(checkpoints: Checkpoints) -> Checkpoint:
    return checkpoints.get("dev", "float32")


@pytest.mark.parametrize("steps", [1, 4])
def test_strength_0_returns_the_picture_through_the_vae_where_pipelines_refuse(
    checkpoint: Checkpoint, steps: int
) -> None:
    job = make_request("image_to_image", strength=0.0, steps=steps, seeds=(3,))
    with pytest.raises(ValueError, match="which is < 1"):
        diffusers_reference.latents(checkpoint, job)
    sitting = run_request(checkpoint, job)
    shades = torch.from_numpy(2.0 * (make_image((96, 64)).astype(np.float32) / 255.0) - 1.0)
    posterior = checkpoint.vae.encode(shades.unsqueeze(0).permute(0, 3, 1, 2)).latent_dist
    through = checkpoint.vae.decode(posterior.sample(torch.Generator().manual_seed(3))).sample[0]
    expected = (through * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0) * 255
    assert np.abs(sitting.pixels[0] - expected.numpy()).max() <= 1
    assert isinstance(sitting.events[0], Started)
    assert not any(isinstance(event, StepDone) for event in sitting.events)
    assert isinstance(sitting.final_event, Completed)
    assert "denoise" not in sitting.final_event.stages_ms
    assert sitting.final_event.mean_batch == 0


@pytest.mark.parametrize(("steps", "strength"), [(4, 0.8), (2, 0.6), (3, 0.99)])
def test_with_few_steps_the_first_is_left_out_where_pipelines_forget_the_picture(
    checkpoint: Checkpoint, steps: int, strength: float
) -> None:
    """A pipeline begins at step int(N - N * s) = 0, from noise alone; we at step 1, which it reaches by 1 - 1 / N."""
    job = make_request("image_to_image", steps=steps, strength=strength)
    ours = run_request(checkpoint, job)
    assert not torch.equal(ours.latents[0], diffusers_reference.latents(checkpoint, job))
    assert torch.equal(ours.latents[0], diffusers_reference.latents(checkpoint, job, strength=1 - 1 / steps))
    assert ours.steps == steps - 1


@pytest.mark.parametrize("mode", ["image_to_image", "inpainting"])
def test_a_single_step_begins_at_its_strength_where_pipelines_forget_the_picture(
    checkpoint: Checkpoint, mode: str
) -> None:
    job = make_request(mode, steps=1, strength=0.4)  # type: ignore[arg-type]
    ours = run_request(checkpoint, job).latents[0]
    assert not torch.equal(ours, diffusers_reference.latents(checkpoint, job))
    assert torch.equal(ours, diffusers_reference.latents(checkpoint, job, strength=1.0, sigmas=[0.4]))


def test_kept_pixels_are_those_of_the_picture_where_pipelines_send_them_through_the_vae(
    checkpoint: Checkpoint,
) -> None:
    job = make_request("inpainting")
    assert job.image is not None
    assert job.mask is not None
    ours, theirs = run_request(checkpoint, job).pixels[0], diffusers_reference.pixels(checkpoint, job)
    kept = job.mask < 128
    assert np.array_equal(ours[kept], job.image[kept])
    assert not np.array_equal(theirs[kept], job.image[kept])
    assert np.array_equal(ours[~kept], theirs[~kept])


def test_a_size_off_the_stride_is_kept_where_pipelines_draw_smaller(checkpoint: Checkpoint) -> None:
    job = make_request(size=(100, 72))
    assert diffusers_reference.pixels(checkpoint, job).shape == (64, 96, 3)
    assert run_request(checkpoint, job).pixels[0].shape == (72, 100, 3)
