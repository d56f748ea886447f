"""Hands out what the curriculum asks for now: latents, and their prompts as the transformer takes them."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training import encoders
from training.bank import Batch, Shelf
from training.curriculum import LESSONS, Stage, lessons_at
from training.drawings.strokes import Rng
from training.flow import Text
from training.machine import Machine
from training.vocabulary import TEXT_TOKENS

RENEWED = 0.3
"""Share of batches after which a new picture takes the place of an old one."""


class Teacher:
    """Has the autoencoder and the text encoders, frozen, and a shelf for every lesson that was given."""

    def __init__(self, runs: Path, rng: Rng, stages: tuple[Stage, ...], machine: Machine) -> None:
        self.folder, self.rng, self.stages, self.machine = runs / "latents", rng, stages, machine
        self.vae = load_vae(runs / "autoencoder" / "vae").to(machine.device)
        self.encoders = encoders.load(runs / "text").to(machine.device)
        self._shelves: dict[str, Shelf] = {}

    def batch(self, progress: float) -> Batch:
        """A batch of one lesson of the stage that the run has come to."""
        shares = lessons_at(progress, self.stages)
        names, weights = list(shares), np.array(list(shares.values()))
        name = str(self.rng.choice(names, p=weights / weights.sum()))
        shelf = self._shelf(name)
        if not self.machine.workers and self.rng.random() < RENEWED:
            # On one core shelves are small; where others draw they are large enough from the beginning.
            shelf.renew(self.rng, 1)
        lesson = LESSONS[name]
        corner = lesson.corners[int(self.rng.integers(len(lesson.corners)))]
        return shelf.batch(self.rng, lesson.batch * self.machine.batch_factor, corner)

    def _shelf(self, name: str) -> Shelf:
        if name not in self._shelves:
            lesson = LESSONS[name]
            path = self.folder / f"{name.replace(' ', '-').replace(':', 'x')}.pt"
            self._shelves[name] = Shelf(path, lesson.grid, lesson.mixture, self.vae, self.machine)
            self._shelves[name].grow(lesson.pictures * self.machine.batch_factor)
        return self._shelves[name]

    @torch.no_grad()
    def read(self, prompts: list[str]) -> Text:
        """Padded as far as the service pads."""
        tokens, pooled = self.encoders(prompts, TEXT_TOKENS)
        return tokens, pooled


def load_vae(folder: Path) -> AutoencoderKL:
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder)
    return vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)
