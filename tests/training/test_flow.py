"""The flow and its latents are those of diffusers' FLUX, so what is learned here is drawn there."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from training import distil, flow
from training.bank import pack, unpack
from training.distil import dev_from
from training.flow import Place, Text
from training.transformer import build

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype")
"""Norms keep float32 weights while training; only the speed suffers."""


def text(batch: int) -> Text:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 7, 128, generator=generator), torch.randn(batch, 128, generator=generator)


@pytest.fixture(scope="module")
def base() -> FluxTransformer2DModel:
    """A base whose last layer and modulations say something, as after training."""
    torch.manual_seed(0)
    model = build()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


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
    torch.testing.assert_close(flow.position_ids(Place(3, 5)), ids)
    on_larger_paper = flow.position_ids(Place(2, 3, top=1, left=2))
    torch.testing.assert_close(on_larger_paper, ids.view(3, 5, 3)[1:, 2:].reshape(-1, 3))


def test_a_fresh_transformer_gives_nothing_so_the_first_loss_is_that_of_guessing_zero() -> None:
    given = flow.velocity(build(), torch.randn(1, 4, 64), torch.rand(1), text(1), Place(2, 2))
    assert not given.any()


def test_dev_begins_as_the_base_whatever_guidance_it_is_told(base: FluxTransformer2DModel) -> None:
    dev, latents, times = dev_from(base), torch.randn(2, 4, 64), torch.rand(2)
    wanted = flow.velocity(base, latents, times, text(2), Place(2, 2))
    for guidance in (1.0, 5.0):
        given = flow.velocity(dev, latents, times, text(2), Place(2, 2), torch.full((2,), guidance))
        torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize(("guidance", "substeps", "as_asked"), [(1.0, 1, True), (3.0, 1, False), (1.0, 4, False)])
def test_schnell_has_to_learn_guidance_and_long_steps_and_nothing_else(
    base: FluxTransformer2DModel, monkeypatch: pytest.MonkeyPatch, guidance: float, substeps: int, as_asked: bool
) -> None:
    monkeypatch.setattr(distil, "SCHNELL_GUIDANCE", guidance)
    monkeypatch.setattr(distil, "SUBSTEPS", substeps)
    student, clean = distil.schnell_from(base), torch.randn(8, 4, 64)
    words = text(8)
    empty = (torch.zeros_like(words[0]), torch.zeros_like(words[1]))
    loss = distil.schnell_loss(student, base, distil.Given(clean, words, empty, Place(2, 2)))
    assert (loss < 1e-4) == as_asked


def test_guidance_of_one_is_the_prompt_alone_and_more_goes_further_that_way(base: FluxTransformer2DModel) -> None:
    latents, times, words = torch.randn(1, 4, 64), torch.rand(1), text(1)
    empty = torch.zeros_like(words[0]), torch.zeros_like(words[1])
    alone = flow.velocity(base, latents, times, words, Place(2, 2))
    without = flow.velocity(base, latents, times, empty, Place(2, 2))
    for scale in (1.0, 3.0):
        given = flow.guided(base, latents, times, words, empty, Place(2, 2), torch.tensor([scale]))
        torch.testing.assert_close(given, without + scale * (alone - without), atol=0.03, rtol=0.03)


def test_training_dwells_on_the_beginning_and_visits_every_time() -> None:
    torch.manual_seed(0)
    times = flow.training_times(4000, flow.shift(256))
    assert times.min() >= 0
    assert times.max() <= 1
    assert 0.35 < (times > 1 - flow.BEGINNING).float().mean() < 0.6
    assert (times < 0.3).float().mean() > 0.02
    assert (times < 0.1).any()
