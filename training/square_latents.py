"""Encodes the drawn square independently of the canvas: as its own tokens and one blank token.

The square is encoded with a narrow margin. The group norms ignore the margin, or weight its corners like the background
of a full canvas.
"""

import torch
from diffusers import AutoencoderKL

from training.drawings.scene import FRAME_PX
from training.group_norms import weighted_statistics
from training.latents import STRIDE_PX, to_tokens
from training.precision import autocast

SIDE = FRAME_PX // STRIDE_PX
"""Tokens a side of the square."""
MARGIN = 2
"""Tokens of margin on each side. The outer ones are affected by the edge of the image."""
PADDED_SIDE = SIDE + 2 * MARGIN
PADDED_PX = PADDED_SIDE * STRIDE_PX
CORNERS_PX2 = 4 * STRIDE_PX**2
"""Pixels of the margin that stand for the background: one token at each corner, where there is hardly ever ink."""
_CORNERS = (MARGIN - 1, MARGIN + SIDE)
_LATENTS = 2
"""Latents a side of a token."""


def crop_square(padded: torch.Tensor) -> torch.Tensor:
    """Crops the square from `[..., side, side]` pixels, latents or tokens."""
    unit = padded.shape[-1] // PADDED_SIDE
    square = slice(MARGIN * unit, (MARGIN + SIDE) * unit)
    return padded[..., square, square]


def pixel_weights(canvas_px2: float = FRAME_PX**2) -> torch.Tensor:
    """Returns the weights of the pixels, `[PADDED_PX, PADDED_PX]`, for a canvas of `canvas_px2` pixels."""
    tokens = torch.zeros(PADDED_SIDE, PADDED_SIDE)
    crop_square(tokens).fill_(1)
    for row in _CORNERS:
        for column in _CORNERS:
            tokens[row, column] = (canvas_px2 - FRAME_PX**2) / CORNERS_PX2
    return tokens.repeat_interleave(STRIDE_PX, 0).repeat_interleave(STRIDE_PX, 1)


@torch.no_grad()
def square_moments(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Encodes `[batch, 3, PADDED_PX, PADDED_PX]`; returns means and log variances, `[batch, 32, 24, 24]`.

    The norms, which must be `WeightedGroupNorm`, ignore the margin. The returned margin is the mean of its corners.
    """
    images = images.to(vae.device).contiguous(memory_format=torch.channels_last)
    with weighted_statistics(vae, pixel_weights().to(vae.device)), autocast(vae.device.type):
        moments: torch.Tensor = vae.encode(images).latent_dist.parameters.float()
    corners = pixel_weights(FRAME_PX**2 + CORNERS_PX2).to(moments)[:: STRIDE_PX // _LATENTS, :: STRIDE_PX // _LATENTS]
    crop_square(corners).zero_()
    blank = (moments * corners).sum(dim=(2, 3), keepdim=True) / corners.sum()
    padded = blank.expand_as(moments).clone()
    crop_square(padded).copy_(crop_square(moments))
    return padded


def encode_square(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Returns the square's tokens row by row, then a blank one, `[batch, SIDE * SIDE + 1, 64]`."""
    mean, _ = square_moments(vae, images).chunk(2, dim=1)
    blank = mean[..., :_LATENTS, :_LATENTS]
    return torch.cat([to_tokens(vae, crop_square(mean)), to_tokens(vae, blank)], 1)
