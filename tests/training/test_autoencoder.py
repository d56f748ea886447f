"""The autoencoder's beginning, and what it looks at."""

import numpy as np
import pytest
import torch

from training.autoencoder import (
    BACKGROUND_GAIN,
    BACKGROUND_TONE,
    INK_GAIN,
    build,
    colour_targets,
    compute_loss,
    ink_mask,
    uses_muon,
)
from training.crops import recolour
from training.muon import Optimizers
from training.norms import Float32GroupNorm
from training.pixels import to_image, to_tensor

pytestmark = pytest.mark.usefixtures("float32_training")


def test_fresh_residual_branches_add_next_to_nothing() -> None:
    torch.manual_seed(0)
    resnet = build().eval().decoder.mid_block.resnets[0]
    features = torch.randn(1, 192, 4, 4)
    with torch.no_grad():
        added = resnet(features, None) - features
    assert added.std() < 0.1 * features.std()


def lined(ink: tuple[float, float, float], background: float = 0.9) -> torch.Tensor:
    """(1, 3, 64, 64): background with one line of ink, 4 pixels wide, down its left half."""
    image = torch.full((1, 3, 64, 64), background)
    image[..., 6:10] = torch.tensor(ink)[None, :, None, None]
    return image


def test_ink_is_told_from_the_paper_that_it_is_on() -> None:
    ink, background = ink_mask(lined((-0.5, 0.1, 0.2)))
    assert (ink[0, 0, 0] == 1).nonzero().flatten().tolist() == [6, 7, 8, 9]
    torch.testing.assert_close(background, torch.full((1, 3, 1, 1), 0.9))


def test_latents_are_asked_for_the_colour_of_ink_nearby_and_of_paper_everywhere() -> None:
    colour = (-0.5, 0.1, 0.2)
    image = lined(colour)
    said, where = colour_targets(image, *ink_mask(image))
    assert said.shape == where.shape == (1, 6, 4, 4)
    torch.testing.assert_close(said[0, :3, 0, 0], INK_GAIN * torch.tensor(colour))
    torch.testing.assert_close(said[0, 3:], torch.full((3, 4, 4), BACKGROUND_GAIN * (0.9 - BACKGROUND_TONE)))
    assert where[0, 0, 0].tolist() == [1, 1, 0, 0]
    assert (where[0, 3:] == 1).all()


def test_a_worse_copy_costs_more() -> None:
    torch.manual_seed(0)
    model, image = build(), lined((-0.5, 0.1, 0.2))
    before = compute_loss(model, image, 1e-4)[1]["loss"]
    with torch.no_grad():
        model.decoder.conv_out.bias -= 1
    assert compute_loss(model, image, 1e-4)[1]["loss"] > before + 0.5


@pytest.mark.slow_training
def test_a_few_steps_bring_images_nearer() -> None:
    torch.manual_seed(0)
    model, image = build(), lined((-0.5, 0.1, 0.2)).contiguous(memory_format=torch.channels_last)
    optimizers = Optimizers(model, 2e-3, uses_muon)
    losses = []
    for _ in range(12):
        loss, values = compute_loss(model, image, 1e-4)
        torch.autograd.backward(loss)
        optimizers.step(2e-3)
        losses.append(values["loss"])
    assert losses[-1] < 0.5 * losses[0]


def test_wide_norms_are_the_same_norms() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 16, 8, 8).bfloat16()
    norm = build().encoder.down_blocks[0].resnets[0].norm1
    assert isinstance(norm, Float32GroupNorm)
    plain = torch.nn.functional.group_norm(features.float(), norm.num_groups, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(norm(features), plain.bfloat16())


def test_crops_are_shown_as_drawn_and_in_other_colours() -> None:
    rng = np.random.default_rng(0)
    crop = torch.full((3, 16, 16), 0.9)
    crop[:, :, 4] = -1
    seen = [recolour(crop, rng) for _ in range(60)]
    as_drawn = sum(torch.equal(one, crop) for one in seen)
    assert 35 <= as_drawn <= 55
    assert {len({tuple(pixel) for pixel in one.flatten(1).T.tolist()}) for one in seen} == {2}
    assert len({tuple(one[:, 0, 4].tolist()) for one in seen}) == 60 - as_drawn + 1


def test_images_come_back_from_tensors_as_they_were() -> None:
    image = to_image(torch.rand(3, 4, 5) * 2 - 1)
    assert image.size == (5, 4)
    assert to_image(to_tensor(image)).tobytes() == image.tobytes()
