"""The latents that the transformer learns from: drawn, encoded once, kept on disk, and renewed while training goes on.

A picture is known by its number: scene and strokes follow from it, so only latents and numbers are stored.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training.drawings.ink import rendered
from training.drawings.prompts import prompt
from training.drawings.sampling import Mixture, sampled
from training.drawings.scene import Scene
from training.drawings.strokes import Rng
from training.drawings.styles import Style
from training.flow import Place
from training.machine import Machine
from training.pixels import to_tensor
from training.text import spoken

STRIDE_PX = 32
"""Pixels a side of one token: the autoencoder's 16, two by two latents packed."""
Grid = tuple[int, int]
"""Rows and columns of tokens."""


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) to FLUX's tokens: (batch, height / 2 * width / 2, channels * 4)."""
    batch, channels, height, width = latents.shape
    blocks = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(batch, height // 2 * (width // 2), channels * 4)


def unpack(tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    batch, _, channels = tokens.shape
    blocks = tokens.view(batch, *grid, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(batch, channels // 4, grid[0] * 2, grid[1] * 2)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Packed latents of unit spread, on the autoencoder's device."""
    with torch.autocast(vae.device.type, torch.bfloat16):
        pictures = pictures.to(vae.device).contiguous(memory_format=torch.channels_last)
        mean = vae.encode(pictures).latent_dist.mean.float()
    return pack((mean - vae.config.shift_factor) * vae.config.scaling_factor)


@torch.no_grad()
def decode(vae: AutoencoderKL, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Pictures (batch, 3, height, width) in [-1, 1]."""
    latents = unpack(tokens, grid) / vae.config.scaling_factor + vae.config.shift_factor
    pictures: torch.Tensor = vae.decode(latents.contiguous(memory_format=torch.channels_last)).sample
    return pictures


@dataclass(frozen=True, slots=True)
class Batch:
    place: Place
    latents: torch.Tensor
    scenes: list[Scene]

    def prompts(self, rng: Rng) -> list[str]:
        """Said anew each time."""
        return [spoken(prompt(scene, rng), rng) for scene in self.scenes]


class Shelf:
    """Latents of pictures of one size."""

    def __init__(
        self,
        path: Path,
        grid: Grid,
        mixture: Mixture,
        vae: AutoencoderKL,
        machine: Machine,
        style: Style | None = None,
    ) -> None:
        self.path, self.grid, self.mixture, self.vae, self.machine = path, grid, mixture, vae, machine
        self.style = style
        self.numbers: list[int] = []
        self.latents = torch.empty(0, grid[0] * grid[1], 64, dtype=torch.float16)
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.numbers, self.latents = state["numbers"], state["latents"]
        self.next_number = max(self.numbers, default=-1) + 1

    def scene(self, number: int) -> Scene:
        return sampled(self._generator(number), self.mixture)

    def _generator(self, number: int) -> Rng:
        return np.random.default_rng([*self.grid, number])

    def _picture(self, number: int) -> torch.Tensor:
        rng = self._generator(number)
        scene = sampled(rng, self.mixture)
        size = (self.grid[1] * STRIDE_PX, self.grid[0] * STRIDE_PX)
        return to_tensor(rendered(scene, size, rng, self.mixture.unsteadiness, self.style))

    def _encoded(self, count: int) -> tuple[list[int], torch.Tensor]:
        """The next `count` pictures: numbers and latents. As many at a time as 16 small ones take."""
        numbers = list(range(self.next_number, self.next_number + count))
        self.next_number += count
        at_once = max(1, 1024 * self.machine.batch_factor // (self.grid[0] * self.grid[1]))
        rows, pictures = [], []
        for place, picture in enumerate(self.machine.each(self._picture, numbers), start=1):
            pictures.append(picture)
            if len(pictures) == at_once or place == count:
                rows.append(encode(self.vae, torch.stack(pictures)).half().cpu())
                pictures = []
        return numbers, torch.cat(rows)

    def grow(self, count: int) -> None:
        """Draws until there are `count` pictures, and stores them."""
        if len(self.numbers) < count:
            numbers, latents = self._encoded(count - len(self.numbers))
            self.numbers += numbers
            self.latents = torch.cat([self.latents, latents])
            self.save()

    def renew(self, rng: Rng, count: int) -> None:
        """Replaces a few pictures by new ones, so that none is seen too often."""
        numbers, latents = self._encoded(count)
        for number, row in zip(numbers, latents, strict=True):
            place = int(rng.integers(len(self.numbers)))
            self.numbers[place], self.latents[place] = number, row

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"numbers": self.numbers, "latents": self.latents}, self.path)

    def batch(self, rng: Rng, count: int, corner: Grid = (0, 0), kept: torch.Tensor | None = None) -> Batch:
        """Some of them, as if they lay on larger paper with so many tokens above and to the left.

        `kept`: numbers of the tokens that are taken, if not all.
        """
        places = rng.integers(len(self.numbers), size=count)
        latents = self.latents[torch.from_numpy(places)]
        if kept is not None:
            latents = latents[:, kept]
        scenes = [self.scene(self.numbers[place]) for place in places]
        return Batch(Place(*self.grid, *corner, kept), latents.to(self.machine.device, torch.float32), scenes)
