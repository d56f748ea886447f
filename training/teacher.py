"""Hands out what the curriculum asks for now: latents, and their prompts as the transformer takes them."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training import encoders
from training.bank import STRIDE_PX, Batch, Grid, Shelf
from training.curriculum import LESSONS, SIDE, Stage, lessons_at, middle
from training.drawings.strokes import Rng
from training.flow import Text
from training.machine import Machine
from training.vocabulary import TEXT_TOKENS

RENEWED = 0.1
"""Share of batches after which a new picture takes the place of an old one."""


def drawn_on_and_around(grid: Grid, around: int, rng: Rng) -> torch.Tensor:
    """Numbers of the tokens of the square that is drawn on, and of some others."""
    rows, columns = grid
    top, left = middle((columns * STRIDE_PX, rows * STRIDE_PX))
    numbers = np.arange(rows * columns).reshape(grid)
    square = numbers[top : top + SIDE, left : left + SIDE].ravel()
    others = rng.choice(np.setdiff1d(numbers, square), around, replace=False)
    return torch.from_numpy(np.sort(np.concatenate([square, others])))


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
        kept = None if lesson.around is None else drawn_on_and_around(lesson.grid, lesson.around, self.rng)
        return shelf.batch(self.rng, lesson.batch * self.machine.batch_factor, corner, kept)

    def _shelf(self, name: str) -> Shelf:
        lesson = LESSONS[name]
        if lesson.shelf not in self._shelves:
            path = self.folder / f"{lesson.shelf.replace(' ', '-').replace(':', 'x')}.pt"
            self._shelves[lesson.shelf] = Shelf(path, lesson.grid, lesson.mixture, self.vae, self.machine)
            self._shelves[lesson.shelf].grow(lesson.pictures * self.machine.batch_factor)
        return self._shelves[lesson.shelf]

    @torch.no_grad()
    def read(self, prompts: list[str]) -> Text:
        """Padded as far as the service pads."""
        tokens, pooled = self.encoders(prompts, TEXT_TOKENS)
        return tokens, pooled


def load_vae(folder: Path) -> AutoencoderKL:
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder)
    return vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)
