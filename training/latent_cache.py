"""The drawings that the transformer learns from: drawn, encoded once, kept on disk, and renewed while training goes on.

A drawing is known by its number: scene and strokes follow from it, so only latents and numbers are stored. Only its
square is: it is laid on paper of any size when it is taken.
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
from training.padding import Paper
from training.pixels import to_tensor
from training.squares import SIDE, WHOLE_PX, coded
from training.text import spoken

AT_ONCE = 8
"""Pictures encoded together, for each of the machine's batches."""


@dataclass(frozen=True, slots=True)
class Batch:
    place: Place
    latents: torch.Tensor
    scenes: list[Scene]

    def prompts(self, rng: Rng) -> list[str]:
        """Said anew each time."""
        return [spoken(prompt(scene, rng), rng) for scene in self.scenes]


class Shelf:
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
        self.numbers: list[int] = []
        self.latents = torch.empty(0, SIDE * SIDE + 1, 64, dtype=torch.float16)
        """(drawings, SIDE * SIDE + 1, 64): as `squares.coded`."""
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.numbers, self.latents = state["numbers"], state["latents"]
        self.next_number = max(self.numbers, default=-1) + 1

    def scene(self, number: int) -> Scene:
        return sampled(np.random.default_rng(number), self.mixture)

    def _picture(self, number: int) -> torch.Tensor:
        rng = np.random.default_rng(number)
        scene = sampled(rng, self.mixture)
        return to_tensor(rendered(scene, (WHOLE_PX, WHOLE_PX), rng, self.mixture.unsteadiness, self.style))

    def _encoded(self, count: int) -> tuple[list[int], torch.Tensor]:
        """The next `count` pictures: numbers and latents."""
        numbers = list(range(self.next_number, self.next_number + count))
        self.next_number += count
        rows, pictures = [], []
        for place, picture in enumerate(self.machine.each(self._picture, numbers), start=1):
            pictures.append(picture)
            if len(pictures) == AT_ONCE * self.machine.batch_factor or place == count:
                rows.append(coded(self.vae, torch.stack(pictures)).half().cpu())
                pictures = []
        return numbers, torch.cat(rows)

    def grow(self, count: int) -> None:
        """Draws until there are `count` drawings, and stores them."""
        if len(self.numbers) < count:
            self._add(*self._encoded(count - len(self.numbers)))
            self.save()

    def _add(self, numbers: list[int], latents: torch.Tensor) -> None:
        self.numbers += numbers
        self.latents = torch.cat([self.latents, latents])

    def renew(self, rng: Rng, count: int, most: int) -> None:
        """Adds a few drawings, and from `most` on replaces others by them, so that none is seen too often."""
        numbers, latents = self._encoded(count)
        if len(self.numbers) < most:
            self._add(numbers, latents)
            return
        for number, row in zip(numbers, latents, strict=True):
            place = int(rng.integers(len(self.numbers)))
            self.numbers[place], self.latents[place] = number, row

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"numbers": self.numbers, "latents": self.latents}, self.path)

    def batch(self, rng: Rng, count: int, paper: Paper) -> Batch:
        """Some of them on such paper."""
        places = rng.integers(len(self.numbers), size=count)
        latents = paper.laid_out(self.latents[torch.from_numpy(places)]).to(self.machine.device, torch.float32)
        return Batch(paper.place(rng), latents, [self.scene(self.numbers[place]) for place in places])
