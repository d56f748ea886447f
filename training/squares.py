"""The square that is drawn on, as latents that are the same on paper of any size: its own tokens, and a blank one.

A picture of the square with a narrow margin is encoded, and the norms see of the margin what we say: nothing, or its
corners as if they were all the paper around. Knows nothing of what is drawn.
"""

import torch
from diffusers import AutoencoderKL

from training.drawings.scene import FRAME_PX
from training.latents import STRIDE_PX, to_tokens
from training.norms import counting
from training.precision import autocast

SIDE = FRAME_PX // STRIDE_PX
"""Tokens a side of the square."""
MARGIN = 2
"""Tokens around it, the outer ones of which feel the picture's edge."""
WHOLE = SIDE + 2 * MARGIN
WHOLE_PX = WHOLE * STRIDE_PX
BARE_PX2 = 4 * STRIDE_PX**2
"""Pixels of the margin that stand for paper: a token at each corner of the square, where ink hardly ever comes near."""
_CORNERS = (MARGIN - 1, MARGIN + SIDE)
_LATENTS = 2
"""A side of a token."""


def inner(whole: torch.Tensor) -> torch.Tensor:
    """The square of (..., side, side), be it a picture, latents or tokens."""
    unit = whole.shape[-1] // WHOLE
    square = slice(MARGIN * unit, (MARGIN + SIDE) * unit)
    return whole[..., square, square]


def counts(paper_px2: float = FRAME_PX**2) -> torch.Tensor:
    """(WHOLE_PX, WHOLE_PX): how often each pixel counts, if the square lies on paper of so many pixels."""
    tokens = torch.zeros(WHOLE, WHOLE)
    inner(tokens).fill_(1)
    for row in _CORNERS:
        for column in _CORNERS:
            tokens[row, column] = (paper_px2 - FRAME_PX**2) / BARE_PX2
    return tokens.repeat_interleave(STRIDE_PX, 0).repeat_interleave(STRIDE_PX, 1)


@torch.no_grad()
def told(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """What the encoder says of (batch, 3, WHOLE_PX, WHOLE_PX): (batch, 32, 24, 24), means and then variances' logs.

    The norms, which must be countable, see the square alone, and around it everything is as blank as at its corners.
    """
    pictures = pictures.to(vae.device).contiguous(memory_format=torch.channels_last)
    with counting(vae, counts().to(vae.device)), autocast(vae.device.type):
        said: torch.Tensor = vae.encode(pictures).latent_dist.parameters.float()
    bare = counts(FRAME_PX**2 + BARE_PX2).to(said)[:: STRIDE_PX // _LATENTS, :: STRIDE_PX // _LATENTS]
    inner(bare).zero_()
    blank = (said * bare).sum(dim=(2, 3), keepdim=True) / bare.sum()
    whole = blank.expand_as(said).clone()
    inner(whole).copy_(inner(said))
    return whole


def coded(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """(batch, SIDE * SIDE + 1, 64): the tokens of the square row by row, then a blank one. Otherwise as `told`."""
    mean, _ = told(vae, pictures).chunk(2, dim=1)
    blank = mean[..., :_LATENTS, :_LATENTS]
    return torch.cat([to_tokens(vae, inner(mean)), to_tokens(vae, blank)], 1)
