"""With weighted norms, the latents of the square depend little on the size of the canvas."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from tests.training.autoencoders import fresh_autoencoder
from training.drawings.render import render
from training.drawings.scene import FRAME_PX, Item, Scene
from training.group_norms import weighted_statistics
from training.image_tensors import to_tensor
from training.latents import encode
from training.square_latents import (
    MARGIN,
    PADDED_PX,
    PADDED_SIDE,
    SIDE,
    crop_square,
    encode_square,
    pixel_weights,
    square_moments,
)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return fresh_autoencoder().eval().requires_grad_(False)


def star(side_px: int) -> torch.Tensor:
    """Returns `[1, 3, side_px, side_px]` with the same strokes in the middle."""
    scene = Scene((Item("thing", "star", "red"),), None, "white")
    return to_tensor(render(scene, (side_px, side_px), np.random.default_rng(0)))[None]


@pytest.mark.parametrize("side_px", [512, 768])
def test_weighted_margin_approximates_large_canvas(vae: AutoencoderKL, side_px: int) -> None:
    offset = (side_px - FRAME_PX) // 64
    large = encode(vae, star(side_px)).view(side_px // 32, side_px // 32, 64)[offset:, offset:][:SIDE, :SIDE]
    with weighted_statistics(vae, pixel_weights(side_px**2)):
        weighted = encode(vae, star(PADDED_PX)).view(PADDED_SIDE, PADDED_SIDE, 64)[MARGIN:, MARGIN:][:SIDE, :SIDE]
    unweighted = encode(vae, star(PADDED_PX)).view(PADDED_SIDE, PADDED_SIDE, 64)[MARGIN:, MARGIN:][:SIDE, :SIDE]
    assert (weighted - large).square().mean() < 0.2 * (unweighted - large).square().mean()


def test_pixel_weights_sum_to_canvas_pixels() -> None:
    assert pixel_weights().sum() == FRAME_PX**2
    assert pixel_weights(1024**2).sum() == 1024**2
    assert (crop_square(pixel_weights(1024**2)) == 1).all()


def test_encode_square_returns_square_and_blank_token(vae: AutoencoderKL) -> None:
    code, moments = encode_square(vae, star(PADDED_PX)), square_moments(vae, star(PADDED_PX))
    assert code.shape == (1, SIDE * SIDE + 1, 64)
    assert moments.shape == (1, 32, 2 * PADDED_SIDE, 2 * PADDED_SIDE)
    corner, middle = ((code[0, token] - code[0, -1]).abs().max() for token in (0, SIDE * SIDE // 2))
    assert corner < 0.5 * middle
    margin = moments.clone()
    crop_square(margin).copy_(moments[..., :1, :1].expand_as(crop_square(margin)))
    assert torch.equal(margin, moments[..., :1, :1].expand_as(moments))
