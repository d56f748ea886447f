"""The autoencoder's initialisation, losses and crops."""

import numpy as np
import pytest
import torch

from tests.training.images import image_with_line
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
from training.group_norms import Float32GroupNorm
from training.image_tensors import to_image, to_tensor
from training.muon_optimizer import Optimizers

pytestmark = pytest.mark.usefixtures("float32_training")


def test_fresh_residual_branches_are_near_zero() -> None:
    torch.manual_seed(0)
    resnet = build().eval().decoder.mid_block.resnets[0]
    features = torch.randn(1, 192, 4, 4)
    with torch.no_grad():
        added = resnet(features, None) - features
    assert added.std() < 0.1 * features.std()


def test_ink_mask_separates_ink_from_background() -> None:
    ink, background = ink_mask(image_with_line((-0.5, 0.1, 0.2), 64))
    assert (ink[0, 0, 0] == 1).nonzero().flatten().tolist() == [6, 7, 8, 9]
    torch.testing.assert_close(background, torch.full((1, 3, 1, 1), 0.9))


def test_colour_targets_have_ink_near_the_line_and_background_everywhere() -> None:
    colour = (-0.5, 0.1, 0.2)
    image = image_with_line(colour, 64)
    targets, mask = colour_targets(image, *ink_mask(image))
    assert targets.shape == mask.shape == (1, 6, 4, 4)
    torch.testing.assert_close(targets[0, :3, 0, 0], INK_GAIN * torch.tensor(colour))
    torch.testing.assert_close(targets[0, 3:], torch.full((3, 4, 4), BACKGROUND_GAIN * (0.9 - BACKGROUND_TONE)))
    assert mask[0, 0, 0].tolist() == [1, 1, 0, 0]
    assert (mask[0, 3:] == 1).all()


def test_worse_reconstruction_has_higher_loss() -> None:
    torch.manual_seed(0)
    model, image = build(), image_with_line((-0.5, 0.1, 0.2), 64)
    before = compute_loss(model, image, 1e-4)[1]["loss"]
    with torch.no_grad():
        model.decoder.conv_out.bias -= 1
    assert compute_loss(model, image, 1e-4)[1]["loss"] > before + 0.5


@pytest.mark.slow_training
def test_few_steps_halve_the_loss() -> None:
    torch.manual_seed(0)
    model, image = build(), image_with_line((-0.5, 0.1, 0.2), 64).contiguous(memory_format=torch.channels_last)
    optimizers = Optimizers(model, 2e-3, uses_muon)
    losses = []
    for _ in range(12):
        loss, values = compute_loss(model, image, 1e-4)
        torch.autograd.backward(loss)
        optimizers.step(2e-3)
        losses.append(values["loss"])
    assert losses[-1] < 0.5 * losses[0]


def test_float32_norm_matches_group_norm() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 16, 8, 8).bfloat16()
    norm = build().encoder.down_blocks[0].resnets[0].norm1
    assert isinstance(norm, Float32GroupNorm)
    plain = torch.nn.functional.group_norm(features.float(), norm.num_groups, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(norm(features), plain.bfloat16())


def test_recolour_keeps_some_crops_and_recolours_others() -> None:
    rng = np.random.default_rng(0)
    crop = torch.full((3, 16, 16), 0.9)
    crop[:, :, 4] = -1
    crops = [recolour(crop, rng) for _ in range(60)]
    unchanged = sum(torch.equal(each, crop) for each in crops)
    assert 35 <= unchanged <= 55
    assert {len({tuple(pixel) for pixel in each.flatten(1).T.tolist()}) for each in crops} == {2}
    assert len({tuple(each[:, 0, 4].tolist()) for each in crops}) == 60 - unchanged + 1


def test_image_tensor_conversion_round_trips() -> None:
    image = to_image(torch.rand(3, 4, 5) * 2 - 1)
    assert image.size == (5, 4)
    assert to_image(to_tensor(image)).tobytes() == image.tobytes()
