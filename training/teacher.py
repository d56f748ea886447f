"""Hands out what the curriculum asks for now: latents, and their prompts as the transformer takes them."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from training import encoders
from training.curriculum import LESSONS, PAPERS, Stage, one_of, stage_at
from training.drawings.strokes import Rng
from training.flow import Text
from training.latent_cache import Batch, Shelf
from training.machine import Machine
from training.norms import make_countable
from training.vocabulary import TEXT_TOKENS

AT_FIRST, RENEWED = 400, 2
"""Drawings of a lesson before it begins, on a core that learns meanwhile, and new ones with every batch."""
TOKENS = 4608
"""Of pictures and prompts in a batch: so all paper takes about as long."""


def pictures_of(tokens: int) -> int:
    """How many pictures of so many tokens are learned at once."""
    return round(TOKENS / (tokens + TEXT_TOKENS))


class Teacher:
    """Has the autoencoder and the text encoders, frozen, and a shelf for every lesson that was given."""

    def __init__(self, runs: Path, rng: Rng, stages: tuple[Stage, ...], machine: Machine) -> None:
        self.folder, self.rng, self.stages, self.machine = runs / "latents", rng, stages, machine
        self.vae = load_vae(runs / "autoencoder" / "vae").to(machine.device)
        self.encoders = encoders.load(runs / "text").to(machine.device)
        self._shelves: dict[str, Shelf] = {}

    def batch(self, progress: float) -> Batch:
        """A batch of one lesson of the stage that the run has come to, on one of its papers."""
        stage = stage_at(progress, self.stages)
        shelf, paper = self._shelf(one_of(stage.lessons, self.rng)), PAPERS[one_of(stage.papers, self.rng)]
        return shelf.batch(self.rng, pictures_of(paper.taken) * self.machine.batch_factor, paper)

    def _shelf(self, name: str) -> Shelf:
        """With some new drawings, unless other processes have drawn enough at the beginning."""
        most, draws_now = LESSONS[name].pictures * self.machine.batch_factor, not self.machine.workers
        if name not in self._shelves:
            path = self.folder / f"{name}.pt"
            self._shelves[name] = Shelf(path, LESSONS[name].mixture, self.vae, self.machine)
            self._shelves[name].grow(min(AT_FIRST, most) if draws_now else most)
        if draws_now:
            self._shelves[name].renew(self.rng, RENEWED, most)
        return self._shelves[name]

    @torch.no_grad()
    def read(self, prompts: list[str]) -> Text:
        """Padded as far as the service pads."""
        tokens, pooled = self.encoders(prompts, TEXT_TOKENS)
        return tokens, pooled


def load_vae(folder: Path) -> AutoencoderKL:
    """The autoencoder, frozen; its norms are countable."""
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder)
    make_countable(vae)
    return vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)
