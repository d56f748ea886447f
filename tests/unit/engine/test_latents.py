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
def test_a_grid_covers_the_picture(space: LatentSpace, size: tuple[int, int], grid: LatentGrid) -> None:
    assert space.grid(size) == grid


def test_the_stride_is_the_checkpoints(checkpoints: Checkpoints) -> None:
    assert LatentSpace(checkpoints.get("dev", "float32", geometry=FIVE_STAGES)).grid((100, 72)) == LatentGrid(3, 4)


def test_a_token_is_a_square_of_latents() -> None:
    latents = torch.arange(2 * 4 * 6, dtype=torch.float32).reshape(1, 2, 4, 6)
    tokens = pack(latents)
    assert tokens.shape == (1, 6, 8)
    assert tokens[0, 1].tolist() == [2, 3, 8, 9, 26, 27, 32, 33]
    assert torch.equal(unpack(tokens, LatentGrid(2, 3)), latents)


def test_positions_are_rows_and_columns(space: LatentSpace) -> None:
    assert space.img_ids(LatentGrid(2, 3)).tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 0, 2],
        [0, 1, 0],
        [0, 1, 1],
        [0, 1, 2],
    ]


def test_noise_is_float32_of_one_image_rounded_to_the_transformers_dtype(space: LatentSpace) -> None:
    noise = space.noise(torch.Generator().manual_seed(5), LatentGrid(4, 6))
    drawn = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float32)
    assert noise.dtype == torch.bfloat16
    assert torch.equal(noise, pack(drawn.bfloat16()))


def test_a_mask_is_read_at_the_corner_of_each_latent(space: LatentSpace) -> None:
    mask = np.zeros((64, 96), np.uint8)
    mask[8, 16] = 255  # a corner: latent 1 down and 2 across
    mask[31, 31] = 255  # no corner
    repaint = unpack(space.pack_mask(mask), LatentGrid(4, 6))
    assert repaint.sum() == 16
    assert (repaint[0, :, 1, 2] == 1).all()


def test_greys_of_a_mask_are_repainted_from_the_middle_on(space: LatentSpace) -> None:
    below, above = (space.pack_mask(np.full((16, 16), grey, np.uint8)) for grey in (127, 128))
    assert (below == 0).all()
    assert (above == 1).all()


def test_kept_pixels_are_pasted_back_exactly() -> None:
    picture, mask = make_image((96, 64)), make_mask((96, 64))
    drawn = torch.full((64, 96, 3), 77, dtype=torch.uint8)
    pasted = paste_kept_pixels(drawn, picture, mask).numpy()
    assert np.array_equal(pasted[mask < 128], picture[mask < 128])
    assert (pasted[mask >= 128] == 77).all()
