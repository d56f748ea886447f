"""Latent grids, packing, noise and masks."""

import numpy as np
import pytest
import torch

from serve.engine.latents import LatentGrid, LatentSpace, pack, paste_kept_pixels, unpack
from tests.unit.engine.checkpoints import FIVE_STAGES, Checkpoints
from tests.unit.engine.requests import make_image, make_mask


@pytest.fixture
def space(checkpoints: Checkpoints) -> LatentSpace:
    return LatentSpace(checkpoints.get("dev", "bf16"))


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((96, 64), LatentGrid(4, 6)),
        ((97, 64), LatentGrid(4, 7)),
        ((100, 72), LatentGrid(5, 7)),
        ((16, 1), LatentGrid(1, 1)),
    ],
)
def test_grid_covers_the_image(space: LatentSpace, size: tuple[int, int], grid: LatentGrid) -> None:
    assert space.grid(size) == grid


def test_grid_uses_the_pixel_stride_of_the_checkpoint(checkpoints: Checkpoints) -> None:
    assert LatentSpace(checkpoints.get("dev", "float32", geometry=FIVE_STAGES)).grid((100, 72)) == LatentGrid(3, 4)


def test_pack_makes_a_token_of_two_by_two_latents() -> None:
    latents = torch.arange(2 * 4 * 6, dtype=torch.float32).reshape(1, 2, 4, 6)
    tokens = pack(latents)
    assert tokens.shape == (1, 6, 8)
    assert tokens[0, 1].tolist() == [2, 3, 8, 9, 26, 27, 32, 33]
    assert torch.equal(unpack(tokens, LatentGrid(2, 3)), latents)


def test_img_ids_are_rows_and_columns(space: LatentSpace) -> None:
    assert space.img_ids(LatentGrid(2, 3)).tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 0, 2],
        [0, 1, 0],
        [0, 1, 1],
        [0, 1, 2],
    ]


def test_noise_is_drawn_in_float32_and_rounded_to_the_dtype_of_the_transformer(space: LatentSpace) -> None:
    noise = space.noise(torch.Generator().manual_seed(5), LatentGrid(4, 6))
    expected = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float32)
    assert noise.dtype == torch.bfloat16
    assert torch.equal(noise, pack(expected.bfloat16()))


def test_mask_is_sampled_at_the_top_left_pixel_of_each_latent(space: LatentSpace) -> None:
    mask = np.zeros((64, 96), np.uint8)
    mask[8, 16] = 255  # top left pixel of the latent in row 1, column 2
    mask[31, 31] = 255  # not sampled
    repainted = unpack(space.pack_mask(mask), LatentGrid(4, 6))
    assert repainted.sum() == 16
    assert (repainted[0, :, 1, 2] == 1).all()


def test_mask_repaints_from_grey_128(space: LatentSpace) -> None:
    below, above = (space.pack_mask(np.full((16, 16), grey, np.uint8)) for grey in (127, 128))
    assert (below == 0).all()
    assert (above == 1).all()


def test_paste_kept_pixels_restores_unmasked_pixels_exactly() -> None:
    image, mask = make_image((96, 64)), make_mask((96, 64))
    generated = torch.full((64, 96, 3), 77, dtype=torch.uint8)
    pasted = paste_kept_pixels(generated, image, mask).numpy()
    assert np.array_equal(pasted[mask < 128], image[mask < 128])
    assert (pasted[mask >= 128] == 77).all()
