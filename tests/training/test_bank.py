"""Shelves of latents and the curriculum that picks from them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from serve.catalog import SIZES
from training.bank import STRIDE_PX, Shelf, decode, encode
from training.curriculum import LESSONS, LETTERS, STAGES, STEADY, lessons_at, middle
from training.drawings.sampling import Mixture
from training.drawings.scene import FRAME_PX, Item, Scene, inked
from training.flow import position_ids
from training.machine import CPU
from training.teacher import drawn_on_and_around


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    """A sixteenth of the side, and nothing learned."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 5,
        up_block_types=["UpDecoderBlock2D"] * 5,
        block_out_channels=[4] * 5,
        norm_num_groups=2,
        latent_channels=16,
        shift_factor=0.5,
        scaling_factor=2.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


@pytest.fixture
def shelf(tmp_path: Path, vae: AutoencoderKL) -> Shelf:
    shelf = Shelf(tmp_path / "shelf.pt", (1, 2), Mixture(), vae, CPU)
    shelf.grow(5)
    return shelf


def test_latents_have_a_token_for_each_stride_of_the_picture(vae: AutoencoderKL) -> None:
    latents = encode(vae, torch.zeros(3, 3, STRIDE_PX, 2 * STRIDE_PX))
    assert latents.shape == (3, 2, 64)
    assert decode(vae, latents, (1, 2)).shape == (3, 3, STRIDE_PX, 2 * STRIDE_PX)


def test_latents_are_shifted_and_scaled_as_the_configuration_says(vae: AutoencoderKL) -> None:
    picture = torch.zeros(1, 3, STRIDE_PX, STRIDE_PX)
    mean = vae.encode(picture).latent_dist.mean
    torch.testing.assert_close(encode(vae, picture).sum(), ((mean - 0.5) * 2).sum(), atol=0.3, rtol=0.02)


def test_a_shelf_is_read_again_as_it_was_written(shelf: Shelf, vae: AutoencoderKL) -> None:
    again = Shelf(shelf.path, shelf.grid, shelf.mixture, vae, CPU)
    assert again.numbers == shelf.numbers == [0, 1, 2, 3, 4]
    assert torch.equal(again.latents, shelf.latents)
    assert again.next_number == 5


def test_a_batch_pairs_each_picture_with_its_own_scene(shelf: Shelf) -> None:
    batch = shelf.batch(np.random.default_rng(0), 8)
    for latents, scene in zip(batch.latents, batch.scenes, strict=True):
        place = next(k for k, row in enumerate(shelf.latents) if torch.equal(row.float(), latents))
        assert shelf.scene(shelf.numbers[place]) == scene


def test_tokens_that_are_left_out_keep_their_places(shelf: Shelf) -> None:
    whole = shelf.batch(np.random.default_rng(0), 3)
    part = shelf.batch(np.random.default_rng(0), 3, kept=torch.tensor([1]))
    assert torch.equal(part.latents, whole.latents[:, 1:])
    assert torch.equal(position_ids(part.place), position_ids(whole.place)[1:])


@pytest.mark.parametrize(("grid", "top", "left"), [((16, 16), 4, 4), ((32, 32), 12, 12), ((20, 48), 6, 20)])
def test_of_large_paper_what_is_drawn_on_is_taken_whole(grid: tuple[int, int], top: int, left: int) -> None:
    taken = drawn_on_and_around(grid, 50, np.random.default_rng(0))
    there = torch.zeros(grid, dtype=torch.bool)
    there.view(-1)[taken] = True
    assert there[top : top + 8, left : left + 8].all()
    assert there.sum() == 64 + 50


def test_renewing_brings_pictures_that_were_never_there(shelf: Shelf) -> None:
    shelf.renew(np.random.default_rng(0), 2)
    assert len(shelf.numbers) == 5
    assert set(shelf.numbers) & {5, 6}


def test_the_stages_follow_each_other_to_the_end() -> None:
    ends = [stage.until for stage in STAGES]
    assert ends == sorted(ends)
    assert ends[-1] == 1.0
    assert lessons_at(0.0) == STAGES[0].lessons
    assert lessons_at(STAGES[0].until) == STAGES[1].lessons
    assert lessons_at(1.0) == STAGES[-1].lessons


def test_one_thing_by_a_steady_hand_comes_first_and_every_size_of_the_service_comes_at_last() -> None:
    assert {LESSONS[name].mixture for name in STAGES[0].lessons} == {STEADY}
    taught = {LESSONS[name].grid for name in STAGES[-1].lessons}
    served = {(height // STRIDE_PX, width // STRIDE_PX) for table in SIZES.values() for width, height in table.values()}
    assert served <= taught
    assert all(side % STRIDE_PX == 0 for table in SIZES.values() for size in table.values() for side in size)


def test_at_last_words_are_written_on_every_square() -> None:
    taught = STAGES[-1].lessons
    written = {LESSONS[name].grid for name in taught if LESSONS[name].mixture == LETTERS}
    assert written == {(8, 8), (16, 16), (32, 32)}
    around = {LESSONS[name].around for name in taught if LESSONS[name].mixture == LETTERS}
    assert None in around, "whole paper too"
    shelves = [(lesson.shelf, lesson.mixture, lesson.grid, lesson.pictures) for lesson in LESSONS.values()]
    assert len(set(shelves)) == len({shelf for shelf, *_ in shelves}), "lessons that share a shelf ask the same of it"


@pytest.mark.parametrize("megapixels", SIZES)
def test_on_any_paper_a_thing_falls_into_tokens_as_it_does_on_the_smallest(megapixels: str) -> None:
    """The square that is learned lies on whole tokens, so its pictures are pieces of the larger ones."""
    scene = Scene((Item("thing", "house", "blue"),), None, "white")
    (alone,) = inked(scene, (FRAME_PX, FRAME_PX), np.random.default_rng(0))
    for size in SIZES[megapixels].values():
        (house,) = inked(scene, size, np.random.default_rng(0))
        shift = np.array(middle(size)[::-1]) * STRIDE_PX
        np.testing.assert_allclose(house.strokes[0] - shift, alone.strokes[0], atol=1e-6)
