"""Schedules, packing and position ids match diffusers, and guidance follows its formula."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from tests.training.base_models import random_embeds, zero_embeds
from training import flow_matching
from training.flow_matching import TokenLayout
from training.latents import pack, unpack
from training.transformer import build

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype")
"""torch warns that norms keep float32 weights in training, which is slower."""


@pytest.mark.parametrize(("steps", "tokens"), [(28, 64), (28, 1024), (4, 256)])
def test_schedule_matches_diffusers(steps: int, tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    sigmas = torch.linspace(1.0, 1 / steps, steps).tolist()
    scheduler.set_timesteps(sigmas=sigmas, mu=math.log(flow_matching.shift(tokens)))
    torch.testing.assert_close(flow_matching.schedule(steps, flow_matching.shift(tokens)), scheduler.sigmas)


def test_packing_matches_diffusers_and_round_trips() -> None:
    latents = torch.randn(2, 16, 6, 8)
    packed = FluxPipeline._pack_latents(latents, 2, 16, 6, 8)
    torch.testing.assert_close(pack(latents), packed)
    torch.testing.assert_close(unpack(packed, (3, 4)), latents)


def test_position_ids_match_diffusers() -> None:
    ids = FluxPipeline._prepare_latent_image_ids(1, 3, 5, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(flow_matching.position_ids(TokenLayout(3, 5)), ids)
    assert torch.equal(flow_matching.position_ids(TokenLayout(3, 5, torch.tensor([7, 2]))), ids[[7, 2]])


def test_fresh_transformer_predicts_zero() -> None:
    predicted = flow_matching.velocity(
        build(), torch.randn(1, 4, 64), torch.rand(1), random_embeds(1), TokenLayout(2, 2)
    )
    assert not predicted.any()


def test_guidance_extrapolates_from_the_empty_prompt(base: FluxTransformer2DModel) -> None:
    latents, times, embeds = torch.randn(1, 4, 64), torch.rand(1), random_embeds(1)
    with_prompt = flow_matching.velocity(base, latents, times, embeds, TokenLayout(2, 2))
    without_prompt = flow_matching.velocity(base, latents, times, zero_embeds(1), TokenLayout(2, 2))
    for scale in (1.0, 3.0):
        predicted = flow_matching.guided_velocity(
            base, latents, times, embeds, zero_embeds(1), TokenLayout(2, 2), torch.tensor([scale])
        )
        torch.testing.assert_close(
            predicted, without_prompt + scale * (with_prompt - without_prompt), atol=0.03, rtol=0.03
        )


def test_sample_times_favours_high_noise_and_covers_all_times() -> None:
    torch.manual_seed(0)
    times = flow_matching.sample_times(4000, flow_matching.shift(256))
    assert times.min() >= 0
    assert times.max() <= 1
    assert 0.35 < (times > 1 - flow_matching.HIGH_NOISE_SPAN).float().mean() < 0.6
    assert (times < 0.3).float().mean() > 0.02
    assert (times < 0.1).any()
