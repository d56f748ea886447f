"""Latents: initial noise, packing, position ids, and the VAE in both directions.

Images may have any size: they are padded to whole tokens of the checkpoint and cropped after decoding. The formulas,
and the order in which random numbers are generated, follow diffusers' FLUX pipelines.
"""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from serve.engine.checkpoint import PATCH_SIZE, Checkpoint
from serve.model_specs import MASK_THRESHOLD, ImageArray, MaskArray, Size


@dataclass(frozen=True, slots=True)
class LatentGrid:
    """An image's size in transformer tokens."""

    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        return self.rows * self.columns


class LatentSpace:
    """The latents of one checkpoint, on its device."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._vae = checkpoint.vae
        self.device = checkpoint.device
        self.pixel_stride = checkpoint.pixel_stride
        """Pixels per side of a token."""
        self._channels = checkpoint.vae.config.latent_channels
        self._dtype = checkpoint.transformer.dtype
        self._scaling_factor = checkpoint.vae.config.scaling_factor
        self._shift_factor = checkpoint.vae.config.shift_factor

    @property
    def pixels_per_latent(self) -> int:
        """On each side."""
        return self.pixel_stride // PATCH_SIZE

    def grid(self, size: Size) -> LatentGrid:
        """The tokens that cover `size`."""
        width, height = size
        return LatentGrid(rows=-(-height // self.pixel_stride), columns=-(-width // self.pixel_stride))

    def img_ids(self, grid: LatentGrid) -> Tensor:
        """[tokens, 3]: zero, row and column of each token. Follows `FluxPipeline._prepare_latent_image_ids`."""
        rows, columns = torch.meshgrid(torch.arange(grid.rows), torch.arange(grid.columns), indexing="ij")
        ids = torch.stack((torch.zeros_like(rows), rows, columns), dim=-1).reshape(grid.tokens, 3)
        return ids.to(self.device, self._dtype)

    def noise(self, generator: torch.Generator, grid: LatentGrid) -> Tensor:
        """Packed noise, [1, tokens, channels], generated in float32 by a CPU generator, in the transformer's dtype."""
        shape = (1, self._channels, grid.rows * PATCH_SIZE, grid.columns * PATCH_SIZE)
        noise = randn_tensor(shape, generator=generator, device=self.device, dtype=torch.float32)
        return pack(noise.to(self._dtype))

    def encode(self, image: ImageArray) -> DiagonalGaussianDistribution:
        """The distribution of an image's latents. The image is padded with its edge to whole tokens."""
        values = 2.0 * (self._pad(image).astype(np.float32) / 255.0) - 1.0
        # Convolutions choose their order of summation by the strides, so the strides are those of diffusers too.
        pixels = torch.from_numpy(values).unsqueeze(0).permute(0, 3, 1, 2)
        posterior: DiagonalGaussianDistribution = self._vae.encode(pixels.to(self.device, self._vae.dtype)).latent_dist
        return posterior

    def sample(self, posterior: DiagonalGaussianDistribution, generator: torch.Generator) -> Tensor:
        """Packed latents of an encoded image, [1, tokens, channels]."""
        return pack(self._scaled(posterior.sample(generator)).to(self._dtype))

    def mean(self, posterior: DiagonalGaussianDistribution) -> Tensor:
        """The mean of an encoded image's latents, not packed: [1, channels, rows * 2, columns * 2]."""
        return self._scaled(posterior.mode())

    def pack_mask(self, mask: MaskArray) -> Tensor:
        """1 where latents are repainted and 0 where they are kept, packed: [1, tokens, channels]."""
        stride = self.pixels_per_latent
        latents = torch.from_numpy(self._pad(mask)[::stride, ::stride] >= MASK_THRESHOLD)
        return pack(latents.to(self.device, self._dtype).expand(1, self._channels, -1, -1))

    def decode(self, latents: Tensor, grid: LatentGrid, size: Size) -> Tensor:
        """The image of packed latents: uint8 [height, width, 3] on the device."""
        unpacked = unpack(latents, grid).to(self._vae.dtype)
        decoded = self._vae.decode(unpacked / self._scaling_factor + self._shift_factor, return_dict=False)[0]
        values = (decoded * 0.5 + 0.5).clamp(0, 1).float()
        width, height = size
        pixels: Tensor = (values[0].permute(1, 2, 0)[:height, :width] * 255).round().to(torch.uint8).contiguous()
        return pixels

    def _scaled(self, latents: Tensor) -> Tensor:
        """Latents of the VAE as the transformer takes them."""
        scaled: Tensor = (latents - self._shift_factor) * self._scaling_factor
        return scaled

    def _pad(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        padding = [(0, -height % self.pixel_stride), (0, -width % self.pixel_stride)] + [(0, 0)] * (image.ndim - 2)
        return np.pad(image, padding, mode="edge")


def pack(latents: Tensor) -> Tensor:
    """[1, channels, rows * 2, columns * 2] to [1, rows * columns, channels * 4]: `FluxPipeline._pack_latents`."""
    return torch.nn.functional.pixel_unshuffle(latents, PATCH_SIZE).flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: Tensor, grid: LatentGrid) -> Tensor:
    """The inverse of `pack`."""
    patches = tokens.transpose(1, 2).reshape(1, -1, grid.rows, grid.columns)
    return torch.nn.functional.pixel_shuffle(patches, PATCH_SIZE)


def add_noise(latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """`latents` at noise level `sigma`: `FlowMatchEulerDiscreteScheduler.scale_noise`.

    Computed in the dtype of `latents`, which rounds `sigma` too.
    """
    level = torch.full((1, 1, 1), sigma, device=latents.device, dtype=torch.float32).to(latents.dtype)
    return level * noise + (1.0 - level) * latents


def paste_kept_pixels(generated: Tensor, image: ImageArray, mask: MaskArray) -> Tensor:
    """`generated` where the mask repaints, the pixels of `image` elsewhere; uint8 [height, width, 3]."""
    repainted = torch.tensor(mask >= MASK_THRESHOLD, device=generated.device)[..., None]
    return torch.where(repainted, generated, torch.tensor(image, device=generated.device))
