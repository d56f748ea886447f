"""Encodes images to packed latents of unit standard deviation, which the transformer takes, and decodes them."""

import torch
from diffusers import AutoencoderKL

from training.precision import autocast

STRIDE_PX = 32
"""Pixels a side of one token: the VAE's stride of 16 times the packing of 2."""
Grid = tuple[int, int]
"""Rows and columns of tokens."""


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Packs `[batch, channels, height, width]` into tokens `[batch, height / 2 * width / 2, channels * 4]`. Follows
    diffusers' `_pack_latents`."""
    batch, channels, height, width = latents.shape
    blocks = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(batch, height // 2 * (width // 2), channels * 4)


def unpack(tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    batch, _, channels = tokens.shape
    blocks = tokens.view(batch, *grid, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(batch, channels // 4, grid[0] * 2, grid[1] * 2)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Returns packed latents of unit standard deviation, on the VAE's device."""
    with autocast(vae.device.type):
        images = images.to(vae.device).contiguous(memory_format=torch.channels_last)
        return to_tokens(vae, vae.encode(images).latent_dist.mean.float())


def to_tokens(vae: AutoencoderKL, mean: torch.Tensor) -> torch.Tensor:
    """Shifts, scales and packs the encoder's mean, `[batch, 16, height, width]`."""
    return pack((mean - vae.config.shift_factor) * vae.config.scaling_factor)


@torch.no_grad()
def decode(vae: AutoencoderKL, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns images, `[batch, 3, height, width]` in [-1, 1]."""
    latents = unpack(tokens, grid) / vae.config.scaling_factor + vae.config.shift_factor
    images: torch.Tensor = vae.decode(latents.contiguous(memory_format=torch.channels_last)).sample
    return images
