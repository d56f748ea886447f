"""Makes training batches according to the curriculum: latents and encoded prompts."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from training import text_encoders
from training.curriculum import CANVASES, DATASETS, Stage, choose, stage_at
from training.drawings.strokes import Rng
from training.flow_matching import Text
from training.group_norms import use_weighted_norms
from training.hardware import Machine
from training.latent_cache import Batch, LatentCache
from training.tokenizers import TEXT_TOKENS

INITIAL_DRAWINGS, NEW_PER_BATCH = 400, 2
"""Drawings in a cache before training, and new ones per batch, if there are no separate drawing processes."""
TOKENS_PER_BATCH = 4608
"""Image and text tokens in a batch, so that a step takes about as long on any canvas."""


def batch_size(tokens: int) -> int:
    """Returns the number of images in a batch, for images of `tokens` tokens."""
    return round(TOKENS_PER_BATCH / (tokens + TEXT_TOKENS))


class BatchSource:
    """Holds the frozen autoencoder and text encoders, and a latent cache per dataset."""

    def __init__(self, runs: Path, rng: Rng, stages: tuple[Stage, ...], machine: Machine) -> None:
        self.folder, self.rng, self.stages, self.machine = runs / "latents", rng, stages, machine
        self.vae = load_vae(runs / "autoencoder" / "vae").to(machine.device)
        self.encoders = text_encoders.load(runs / "text").to(machine.device)
        self._caches: dict[str, LatentCache] = {}

    def batch(self, progress: float) -> Batch:
        """Returns a batch of one dataset and one canvas of the current stage."""
        stage = stage_at(progress, self.stages)
        latent_cache, canvas = self._cache(choose(stage.datasets, self.rng)), CANVASES[choose(stage.canvases, self.rng)]
        return latent_cache.batch(self.rng, batch_size(canvas.token_count) * self.machine.batch_factor, canvas)

    def _cache(self, name: str) -> LatentCache:
        """Returns the cache of a dataset. Adds some drawings on every call, or all at once with drawing processes."""
        max_size, draws_in_process = DATASETS[name].size * self.machine.batch_factor, not self.machine.workers
        if name not in self._caches:
            path = self.folder / f"{name}.pt"
            self._caches[name] = LatentCache(path, DATASETS[name].mixture, self.vae, self.machine)
            self._caches[name].fill(min(INITIAL_DRAWINGS, max_size) if draws_in_process else max_size)
        if draws_in_process:
            self._caches[name].refresh(self.rng, NEW_PER_BATCH, max_size)
        return self._caches[name]

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Text:
        """Encodes prompts, padded as in the service."""
        tokens, pooled = self.encoders(prompts, TEXT_TOKENS)
        return tokens, pooled


def load_vae(folder: Path) -> AutoencoderKL:
    """Returns the frozen autoencoder with weighted norms."""
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder)
    use_weighted_norms(vae)
    return vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)
