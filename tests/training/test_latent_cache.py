"""The latent cache, and encoding to latents."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from tests.training.autoencoders import fresh_autoencoder
from training.canvas import Canvas
from training.drawings.sampling import Mixture
from training.hardware import CPU
from training.latent_cache import LatentCache
from training.latents import STRIDE_PX, decode, encode
from training.square_latents import SIDE


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return fresh_autoencoder()


@pytest.fixture
def latent_cache(tmp_path: Path, vae: AutoencoderKL) -> LatentCache:
    latent_cache = LatentCache(tmp_path / "latent_cache.pt", Mixture(), vae, CPU)
    latent_cache.fill(5)
    return latent_cache


def test_latents_have_one_token_per_stride(vae: AutoencoderKL) -> None:
    latents = encode(vae, torch.zeros(3, 3, STRIDE_PX, 2 * STRIDE_PX))
    assert latents.shape == (3, 2, 64)
    assert decode(vae, latents, (1, 2)).shape == (3, 3, STRIDE_PX, 2 * STRIDE_PX)


def test_latents_are_shifted_and_scaled_by_config(vae: AutoencoderKL) -> None:
    image = torch.zeros(1, 3, STRIDE_PX, STRIDE_PX)
    mean = vae.encode(image).latent_dist.mean
    torch.testing.assert_close(encode(vae, image).sum(), ((mean - 0.5) * 2).sum(), atol=0.3, rtol=0.02)


def test_cache_is_restored_from_disk(latent_cache: LatentCache, vae: AutoencoderKL) -> None:
    restored = LatentCache(latent_cache.path, latent_cache.mixture, vae, CPU)
    assert restored.seeds == latent_cache.seeds == [0, 1, 2, 3, 4]
    assert torch.equal(restored.latents, latent_cache.latents)
    assert restored.next_seed == 5


def test_batch_pairs_latents_with_scenes(latent_cache: LatentCache) -> None:
    batch = latent_cache.batch(np.random.default_rng(0), 8, Canvas((8, 8)))
    for latents, scene in zip(batch.latents, batch.scenes, strict=True):
        index = next(index for index, row in enumerate(latent_cache.latents) if torch.equal(row[:-1].float(), latents))
        assert latent_cache.scene(latent_cache.seeds[index]) == scene


def test_batch_uses_given_canvas(latent_cache: LatentCache) -> None:
    batch = latent_cache.batch(np.random.default_rng(0), 3, Canvas((10, 12), margin_tokens=7))
    assert batch.layout[:2] == (10, 12)
    assert batch.latents.shape == (3, SIDE * SIDE + 7, 64)


def test_refresh_adds_until_full_then_replaces(latent_cache: LatentCache) -> None:
    latent_cache.refresh(np.random.default_rng(0), 2, max_size=7)
    assert latent_cache.seeds == [0, 1, 2, 3, 4, 5, 6]
    assert len(latent_cache.latents) == 7
    latent_cache.refresh(np.random.default_rng(0), 2, max_size=7)
    assert len(latent_cache.seeds) == len(latent_cache.latents) == 7
    assert set(latent_cache.seeds) & {7, 8}
