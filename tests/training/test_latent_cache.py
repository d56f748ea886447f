"""Shelves of drawings' latents and the curriculum that picks from them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from tests.training.autoencoders import fresh_autoencoder
from training.curriculum import LESSONS, LETTERS, PAPERS, STAGES, STEADY, one_of, stage_at
from training.drawings.sampling import Mixture
from training.latent_cache import Shelf
from training.latents import STRIDE_PX, decode, encode
from training.machine import CPU
from training.padding import Paper
from training.squares import SIDE
from training.teacher import TOKENS, pictures_of
from training.vocabulary import TEXT_TOKENS


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return fresh_autoencoder()


@pytest.fixture
def shelf(tmp_path: Path, vae: AutoencoderKL) -> Shelf:
    shelf = Shelf(tmp_path / "shelf.pt", Mixture(), vae, CPU)
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
    again = Shelf(shelf.path, shelf.mixture, vae, CPU)
    assert again.numbers == shelf.numbers == [0, 1, 2, 3, 4]
    assert torch.equal(again.latents, shelf.latents)
    assert again.next_number == 5


def test_a_batch_pairs_each_drawing_with_its_own_scene(shelf: Shelf) -> None:
    batch = shelf.batch(np.random.default_rng(0), 8, Paper((8, 8)))
    for latents, scene in zip(batch.latents, batch.scenes, strict=True):
        place = next(k for k, row in enumerate(shelf.latents) if torch.equal(row[:-1].float(), latents))
        assert shelf.scene(shelf.numbers[place]) == scene


def test_a_batch_lies_on_the_paper_that_was_asked_for(shelf: Shelf) -> None:
    batch = shelf.batch(np.random.default_rng(0), 3, Paper((10, 12), around=7))
    assert batch.place[:2] == (10, 12)
    assert batch.latents.shape == (3, SIDE * SIDE + 7, 64)


def test_new_drawings_come_until_there_are_enough_and_then_take_the_place_of_others(shelf: Shelf) -> None:
    shelf.renew(np.random.default_rng(0), 2, most=7)
    assert shelf.numbers == [0, 1, 2, 3, 4, 5, 6]
    assert len(shelf.latents) == 7
    shelf.renew(np.random.default_rng(0), 2, most=7)
    assert len(shelf.numbers) == len(shelf.latents) == 7
    assert set(shelf.numbers) & {7, 8}


def test_the_stages_follow_each_other_to_the_end() -> None:
    ends = [stage.until for stage in STAGES]
    assert ends == sorted(ends)
    assert ends[-1] == 1.0
    assert stage_at(0.0) == STAGES[0]
    assert stage_at(STAGES[0].until) == STAGES[1]
    assert stage_at(1.0) == STAGES[-1]
    for stage in STAGES:
        assert stage.lessons.keys() <= LESSONS.keys()
        assert stage.papers.keys() <= PAPERS.keys()


def test_one_thing_by_a_steady_hand_comes_first_and_words_and_every_paper_at_last() -> None:
    assert {LESSONS[name].mixture for name in STAGES[0].lessons} == {STEADY}
    assert LETTERS in {LESSONS[name].mixture for name in STAGES[-1].lessons}
    assert STAGES[-1].papers.keys() == PAPERS.keys()


def test_what_has_a_larger_share_is_taken_more_often() -> None:
    rng = np.random.default_rng(0)
    taken = [one_of({"often": 3, "seldom": 1, "never": 0}, rng) for _ in range(200)]
    assert 120 < taken.count("often") < 180
    assert "never" not in taken


def test_a_batch_has_as_many_tokens_whatever_its_paper() -> None:
    for paper in PAPERS.values():
        tokens = paper.taken + TEXT_TOKENS
        assert 0.8 * TOKENS < pictures_of(paper.taken) * tokens < 1.2 * TOKENS
