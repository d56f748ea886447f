"""The autoencoder's beginning, and what it looks at."""

import numpy as np
import torch

from training.autoencoder import build, ink_weight, loss_of
from training.crops import recoloured
from training.pixels import to_picture, to_tensor

COLOURS = torch.eye(3) * 2 - 1


def checked(colours: torch.Tensor) -> torch.Tensor:
    """(batch, 3, 64, 64): these colours, with dark lines so that the norms have something to divide by."""
    pictures = colours[:, :, None, None].repeat(1, 1, 64, 64)
    pictures[:, :, ::8] *= 0.5
    return pictures


def test_fresh_residual_branches_add_next_to_nothing() -> None:
    torch.manual_seed(0)
    resnet = build().eval().decoder.mid_block.resnets[0]
    features = torch.randn(1, 192, 4, 4)
    with torch.no_grad():
        added = resnet(features, None) - features
    assert added.std() < 0.1 * features.std()


def test_ink_weighs_more_than_the_paper_it_is_on() -> None:
    picture = torch.full((1, 3, 32, 32), 0.9)
    picture[..., 16] = -0.5
    weight = ink_weight(picture)[0, 0, 0]
    assert weight[16] == weight[14] == 4
    assert weight[8] == 1


def test_the_loss_is_nothing_but_kl_for_a_perfect_copy() -> None:
    class Copy:
        def encode(self, pictures: torch.Tensor) -> "Copy":
            self.pictures = pictures
            return self

        @property
        def latent_dist(self) -> "Copy":
            return self

        mean, var, logvar = torch.zeros(1), torch.ones(1), torch.zeros(1)

        def sample(self) -> torch.Tensor:
            return self.pictures

        def decode(self, latents: torch.Tensor) -> "Decoded":
            return Decoded(latents)

    class Decoded:
        def __init__(self, sample: torch.Tensor) -> None:
            self.sample = sample

    pictures = checked(COLOURS)
    assert loss_of(Copy(), pictures, 1.0)[0] == 0
    worse, values = loss_of(Copy(), pictures, 1.0)[1], loss_of(build(), pictures, 1.0)[1]
    assert values["loss"] > worse["loss"]


def test_crops_are_shown_as_drawn_in_other_colours_and_as_bare_fields() -> None:
    rng = np.random.default_rng(0)
    crop = torch.full((3, 16, 16), 0.9)
    crop[:, :, 4] = -1
    seen = [recoloured(crop, rng) for _ in range(60)]
    as_drawn = sum(torch.equal(one, crop) for one in seen)
    two_colours = sum(len({tuple(pixel) for pixel in one.flatten(1).T.tolist()}) == 2 for one in seen)
    assert 15 <= as_drawn <= 40
    assert two_colours > as_drawn + 10
    assert two_colours < 60


def test_pictures_come_back_from_tensors_as_they_were() -> None:
    picture = to_picture(torch.rand(3, 4, 5) * 2 - 1)
    assert picture.size == (5, 4)
    assert to_picture(to_tensor(picture)).tobytes() == picture.tobytes()
