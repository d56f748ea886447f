"""The latent cache: drawings that are encoded once, stored on disk, and gradually replaced during training.

The cache stores seeds, from which the scenes are sampled again, and the latents of the drawn square.
`Canvas.lay_out` pads them to a canvas of any size.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training.canvas import Canvas
from training.drawings.prompts import prompt
from training.drawings.render import render
from training.drawings.sampling import Mixture, sample_scene
from training.drawings.scene import Scene
from training.drawings.strokes import Rng
from training.drawings.styles import Style
from training.flow_matching import TokenLayout
from training.hardware import Machine
from training.image_tensors import to_tensor
from training.square_latents import PADDED_PX, SIDE, encode_square
from training.train_text_encoders import vary_case

ENCODE_BATCH = 8
"""Number of drawings encoded at once, times the machine's batch factor."""


@dataclass(frozen=True, slots=True)
class Batch:
    layout: TokenLayout
    latents: torch.Tensor
    scenes: list[Scene]

    def prompts(self, rng: Rng) -> list[str]:
        """Returns a newly sampled prompt for each scene."""
        return [vary_case(prompt(scene, rng), rng) for scene in self.scenes]


class LatentCache:
    """Latents of drawings of one kind."""

    def __init__(
        self,
        path: Path,
        mixture: Mixture,
        vae: AutoencoderKL,
        machine: Machine,
        style: Style | None = None,
    ) -> None:
        self.path, self.mixture, self.vae, self.machine, self.style = path, mixture, vae, machine, style
        self.seeds: list[int] = []
        self.latents = torch.empty(0, SIDE * SIDE + 1, 64, dtype=torch.float16)
        """`[drawings, SIDE * SIDE + 1, 64]`, as returned by `encode_square`."""
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.seeds, self.latents = state["numbers"], state["latents"]
        self.next_seed = max(self.seeds, default=-1) + 1

    def scene(self, seed: int) -> Scene:
        return sample_scene(np.random.default_rng(seed), self.mixture)

    def _image(self, seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng, self.mixture)
        return to_tensor(render(scene, (PADDED_PX, PADDED_PX), rng, self.mixture.jitter, self.style))

    def _draw_and_encode(self, count: int) -> tuple[list[int], torch.Tensor]:
        """Draws and encodes the next `count` drawings. Returns their seeds and latents."""
        seeds = list(range(self.next_seed, self.next_seed + count))
        self.next_seed += count
        rows, images = [], []
        for index, image in enumerate(self.machine.map_ordered(self._image, seeds), start=1):
            images.append(image)
            if len(images) == ENCODE_BATCH * self.machine.batch_factor or index == count:
                rows.append(encode_square(self.vae, torch.stack(images)).half().cpu())
                images = []
        return seeds, torch.cat(rows)

    def fill(self, count: int) -> None:
        """Adds drawings until there are `count`, and saves them."""
        if len(self.seeds) < count:
            self._add(*self._draw_and_encode(count - len(self.seeds)))
            self.save()

    def _add(self, seeds: list[int], latents: torch.Tensor) -> None:
        self.seeds += seeds
        self.latents = torch.cat([self.latents, latents])

    def refresh(self, rng: Rng, count: int, max_size: int) -> None:
        """Adds `count` drawings. Once the cache has `max_size`, they replace random others."""
        seeds, latents = self._draw_and_encode(count)
        if len(self.seeds) < max_size:
            self._add(seeds, latents)
            return
        for seed, row in zip(seeds, latents, strict=True):
            index = int(rng.integers(len(self.seeds)))
            self.seeds[index], self.latents[index] = seed, row

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"numbers": self.seeds, "latents": self.latents}, self.path)

    def batch(self, rng: Rng, count: int, canvas: Canvas) -> Batch:
        """Returns `count` random drawings on this canvas."""
        indices = rng.integers(len(self.seeds), size=count)
        latents = canvas.lay_out(self.latents[torch.from_numpy(indices)]).to(self.machine.device, torch.float32)
        return Batch(canvas.layout(rng), latents, [self.scene(self.seeds[index]) for index in indices])
