"""Autoencoder training on canvases of every size, and the hue loss."""

from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from tests.training.autoencoders import fresh_autoencoder
from tests.training.images import image_with_line
from training import autoencoder, finetune_autoencoder
from training.autoencoder import ink_mask
from training.drawings.scene import FRAME_PX
from training.finetune_autoencoder import hue_loss, make_batch
from training.group_norms import use_weighted_norms, weighted_statistics
from training.hardware import CPU, Machine
from training.square_latents import PADDED_PX, pixel_weights, square_moments

pytestmark = pytest.mark.usefixtures("float32_training")

GREEN_LINE, BLACK_LINE = (image_with_line(ink, 32) for ink in ((-0.7, 0.0, -0.6), (-0.8, -0.8, -0.8)))


def hue(reconstruction: torch.Tensor, image: torch.Tensor) -> float:
    return float(hue_loss(reconstruction, image, *ink_mask(image)))


def test_hue_loss_is_zero_for_right_ink() -> None:
    assert hue(GREEN_LINE, GREEN_LINE) == 0
    assert hue(BLACK_LINE, GREEN_LINE) > 0.3


def test_hue_loss_tolerates_noise_more_than_wrong_ink() -> None:
    torch.manual_seed(0)
    noisy = GREEN_LINE + 0.4 * torch.randn(1, 3, 32, 32)
    wrong = (BLACK_LINE - GREEN_LINE).abs().mean()
    assert (noisy - GREEN_LINE).abs().mean() > 2 * wrong
    assert hue(noisy, GREEN_LINE) < 0.5 * hue(BLACK_LINE, GREEN_LINE)


def test_hue_loss_is_zero_without_ink() -> None:
    assert hue(torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.9)) == 0


def test_batches_are_with_or_without_margin() -> None:
    vae, drawings = fresh_autoencoder(), torch.rand(1, 3, PADDED_PX, PADDED_PX)
    targets, rng = square_moments(vae, drawings), np.random.default_rng(0)
    batches = [make_batch(vae, drawings, rng) for _ in range(12)]
    for images, moments, canvas_px2 in batches:
        without_margin = canvas_px2 is None
        assert images.shape[2:] == ((FRAME_PX, FRAME_PX) if without_margin else (PADDED_PX, PADDED_PX))
        assert torch.equal(moments, targets[..., 4:20, 4:20] if without_margin else targets)
    sides = [canvas_px2**0.5 for _, _, canvas_px2 in batches if canvas_px2]
    assert finetune_autoencoder.SMALLEST_PX <= min(sides) < 600 < 800 < max(sides) <= finetune_autoencoder.LARGEST_PX
    assert 0 < len(sides) < 12


def distance(vae: AutoencoderKL, canvas_px2: float, targets: torch.Tensor, drawings: torch.Tensor) -> float:
    """Mean squared distance of the moments from the targets, on a canvas of `canvas_px2` pixels."""
    with torch.no_grad(), weighted_statistics(vae, pixel_weights(canvas_px2)):
        return float((vae.encode(drawings).latent_dist.parameters - targets).square().mean())


@pytest.mark.slow_training
def test_refine_reduces_the_distance_of_large_canvas_latents_from_square_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    stored = tmp_path / "autoencoder" / "vae"
    AutoencoderKL(**autoencoder.CONFIG, shift_factor=0.1, scaling_factor=0.8).save_pretrained(stored)
    before = AutoencoderKL.from_pretrained(stored)
    use_weighted_norms(before)
    drawings = finetune_autoencoder.draw_example(np.random.default_rng(1))[None]
    targets, ticks = square_moments(before, drawings), count()
    monkeypatch.setattr(Machine, "clock", lambda _: float(next(ticks)))
    finetune_autoencoder.train(tmp_path, 12 / 60, 0, 2e-4, CPU)
    after = AutoencoderKL.from_pretrained(stored)
    use_weighted_norms(after)
    assert distance(after, 1024**2, targets, drawings) < 0.9 * distance(before, 1024**2, targets, drawings)
    changed = {
        name.partition(".")[0]
        for name, value in after.state_dict().items()
        if not value.equal(before.state_dict()[name])
    }
    assert changed == {"encoder", "decoder"}
    assert (after.config.shift_factor, after.config.scaling_factor) == (0.1, 0.8)
