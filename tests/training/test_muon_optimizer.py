"""Muon for matrices and convolutions, and resuming of optimizers."""

from copy import deepcopy

import pytest
import torch

from training.muon_optimizer import Muon, Optimizers, orthogonalize


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_singular_values_of_a_step_are_about_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    gradient = torch.randn(shape)
    values = torch.linalg.svdvals(orthogonalize(gradient).float())
    assert values.min() > 0.3
    assert values.max() < 1.4


@pytest.mark.parametrize("shape", [(8, 24), (8, 4, 3, 3)])
def test_step_length_matches_adamw(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = 1e-3 * torch.randn(shape)
    Muon([weight], lr=0.1).step()
    assert weight.detach().square().mean().sqrt() == pytest.approx(0.1 * 0.2, rel=0.35)


def test_optimizers_resume_from_state() -> None:
    def take_step(model: torch.nn.Linear, optimizers: Optimizers, seed: int) -> torch.Tensor:
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
        torch.autograd.backward((model(inputs) - inputs.flip(1)).square().sum())
        optimizers.step(0.1)
        return model.weight.detach().clone()

    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    before = Optimizers(model, 0.1, lambda _, parameter: parameter.ndim == 2)
    take_step(model, before, 1)
    state, weights = deepcopy(before.state_dict()), deepcopy(model.state_dict())
    expected = take_step(model, before, 2)
    resumed, restarted = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    for copy in (resumed, restarted):
        copy.load_state_dict(weights)
    after = Optimizers(resumed, 0.1, lambda _, parameter: parameter.ndim == 2)
    after.load_state_dict(state)
    assert torch.equal(take_step(resumed, after, 2), expected)
    fresh = Optimizers(restarted, 0.1, lambda _, parameter: parameter.ndim == 2)
    assert not torch.equal(take_step(restarted, fresh, 2), expected)
