"""Between pixels and what the transformer reads: noise, packing, positions, and the VAE both ways.

Pictures here have any size: they are drawn at the next multiple of the checkpoint's pixel stride and cropped. Knows no
prompt, schedule or request. The order in which numbers are drawn, and every formula, is that of diffusers' pipelines.
"""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from serve.engine.checkpoint import Checkpoint
from serve.engine.request import ImageArray, MaskArray
from serve.model_specs import Size

_PATCH = 2
"""Latents a side of one transformer token."""
_REPAINT = 128
"""Mask values from here on are repainted."""


@dataclass(frozen=True, slots=True)
class LatentGrid:
    """A picture's size in transformer tokens."""

    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        return self.rows * self.columns


class LatentSpace:
    """The latents of one checkpoint, on its device."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._vae = checkpoint.vae
        self._device = checkpoint.device
        self._stride = checkpoint.pixel_stride
        self._channels = checkpoint.vae.config.latent_channels
        self._dtype = checkpoint.transformer.dtype
        self._scaling = checkpoint.vae.config.scaling_factor
        self._offset = checkpoint.vae.config.shift_factor

    def grid(self, size: Size) -> LatentGrid:
        """The tokens that cover `size`."""
        width, height = size
        return LatentGrid(rows=-(-height // self._stride), columns=-(-width // self._stride))

    def img_ids(self, grid: LatentGrid) -> Tensor:
        """[tokens, 3]: nothing, row and column of every token, as the transformer wants them."""
        rows, columns = torch.meshgrid(torch.arange(grid.rows), torch.arange(grid.columns), indexing="ij")
        ids = torch.stack((torch.zeros_like(rows), rows, columns), dim=-1).reshape(grid.tokens, 3)
        return ids.to(self._device, self._dtype)

    def noise(self, generator: torch.Generator, grid: LatentGrid) -> Tensor:
        """Packed noise, [1, tokens, channels]: float32 from a CPU generator, then in the transformer's dtype."""
        shape = (1, self._channels, grid.rows * _PATCH, grid.columns * _PATCH)
        drawn = randn_tensor(shape, generator=generator, device=self._device, dtype=torch.float32)
        return pack(drawn.to(self._dtype))

    def encode(self, picture: ImageArray) -> DiagonalGaussianDistribution:
        """The distribution of a picture's latents; the picture is padded by its edge to whole tokens."""
        shades = 2.0 * (self._pad(picture).astype(np.float32) / 255.0) - 1.0
        # Convolutions choose how they sum by the strides, so these are diffusers' too.
        pixels = torch.from_numpy(shades).unsqueeze(0).permute(0, 3, 1, 2)
        posterior: DiagonalGaussianDistribution = self._vae.encode(pixels.to(self._device, self._vae.dtype)).latent_dist
        return posterior

    def sample(self, posterior: DiagonalGaussianDistribution, generator: torch.Generator) -> Tensor:
        """Packed latents of an encoded picture, [1, tokens, channels]."""
        latents = (posterior.sample(generator) - self._offset) * self._scaling
        return pack(latents.to(self._dtype))

    def pack_mask(self, mask: MaskArray) -> Tensor:
        """1 where latents are drawn anew and 0 where they are kept, packed: [1, tokens, channels]."""
        pixels_per_latent = self._stride // _PATCH
        latents = torch.from_numpy(self._pad(mask)[::pixels_per_latent, ::pixels_per_latent] >= _REPAINT)
        return pack(latents.to(self._device, self._dtype).expand(1, self._channels, -1, -1))

    def decode(self, latents: Tensor, grid: LatentGrid, size: Size) -> Tensor:
        """Packed latents of one picture become its pixels: uint8 [height, width, 3] on the device."""
        unpacked = unpack(latents, grid).to(self._vae.dtype)
        decoded = self._vae.decode(unpacked / self._scaling + self._offset, return_dict=False)[0]
        shades = (decoded * 0.5 + 0.5).clamp(0, 1).float()
        width, height = size
        pixels: Tensor = (shades[0].permute(1, 2, 0)[:height, :width] * 255).round().to(torch.uint8).contiguous()
        return pixels

    def _pad(self, picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        sides = [(0, -height % self._stride), (0, -width % self._stride)] + [(0, 0)] * (picture.ndim - 2)
        return np.pad(picture, sides, mode="edge")


def pack(latents: Tensor) -> Tensor:
    """[1, channels, rows * 2, columns * 2] becomes [1, rows * columns, channels * 4]: squares become tokens."""
    return torch.nn.functional.pixel_unshuffle(latents, _PATCH).flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: Tensor, grid: LatentGrid) -> Tensor:
    """The reverse of `pack`."""
    squares = tokens.transpose(1, 2).reshape(1, -1, grid.rows, grid.columns)
    return torch.nn.functional.pixel_shuffle(squares, _PATCH)


def paste_kept_pixels(drawn: Tensor, picture: ImageArray, mask: MaskArray) -> Tensor:
    """`drawn` where the mask repaints, and the very pixels of `picture` elsewhere; uint8 [height, width, 3]."""
    repainted = torch.tensor(mask >= _REPAINT, device=drawn.device)[..., None]
    return torch.where(repainted, drawn, torch.tensor(picture, device=drawn.device))
