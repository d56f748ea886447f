"""The flow and its latents are those of diffusers' FLUX, so what is learned here is drawn there."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from tests.training.bases import empty, speaking_base, text
from training import flow
from training.flow import TokenLayout
from training.latents import pack, unpack
from training.transformer import build

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype")
"""Norms keep float32 weights while training; only the speed suffers."""


@pytest.fixture(scope="module")
def base() -> FluxTransformer2DModel:
    return speaking_base()


@pytest.mark.parametrize(("steps", "tokens"), [(28, 64), (28, 1024), (4, 256)])
def test_the_schedule_is_that_of_diffusers(steps: int, tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    sigmas = torch.linspace(1.0, 1 / steps, steps).tolist()
    scheduler.set_timesteps(sigmas=sigmas, mu=math.log(flow.shift(tokens)))
    torch.testing.assert_close(flow.schedule(steps, flow.shift(tokens)), scheduler.sigmas)


def test_packing_is_that_of_diffusers_and_can_be_undone() -> None:
    latents = torch.randn(2, 16, 6, 8)
    packed = FluxPipeline._pack_latents(latents, 2, 16, 6, 8)
    torch.testing.assert_close(pack(latents), packed)
    torch.testing.assert_close(unpack(packed, (3, 4)), latents)


def test_positions_are_those_of_diffusers() -> None:
    ids = FluxPipeline._prepare_latent_image_ids(1, 3, 5, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(flow.position_ids(TokenLayout(3, 5)), ids)
    assert torch.equal(flow.position_ids(TokenLayout(3, 5, torch.tensor([7, 2]))), ids[[7, 2]])


def test_a_fresh_transformer_gives_nothing_so_the_first_loss_is_that_of_guessing_zero() -> None:
    given = flow.velocity(build(), torch.randn(1, 4, 64), torch.rand(1), text(1), TokenLayout(2, 2))
    assert not given.any()


def test_guidance_of_one_is_the_prompt_alone_and_more_goes_further_that_way(base: FluxTransformer2DModel) -> None:
    latents, times, words = torch.randn(1, 4, 64), torch.rand(1), text(1)
    alone = flow.velocity(base, latents, times, words, TokenLayout(2, 2))
    without = flow.velocity(base, latents, times, empty(1), TokenLayout(2, 2))
    for scale in (1.0, 3.0):
        given = flow.guided_velocity(base, latents, times, words, empty(1), TokenLayout(2, 2), torch.tensor([scale]))
        torch.testing.assert_close(given, without + scale * (alone - without), atol=0.03, rtol=0.03)


def test_training_dwells_on_the_beginning_and_visits_every_time() -> None:
    torch.manual_seed(0)
    times = flow.sample_times(4000, flow.shift(256))
    assert times.min() >= 0
    assert times.max() <= 1
    assert 0.35 < (times > 1 - flow.HIGH_NOISE_SPAN).float().mean() < 0.6
    assert (times < 0.3).float().mean() > 0.02
    assert (times < 0.1).any()
