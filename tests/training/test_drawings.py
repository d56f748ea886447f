"""Scenes, rendering, prompts, words and styles."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from training.drawings.handwriting import handwriting
from training.drawings.prompts import NAMES, prompt
from training.drawings.render import coverage, render
from training.drawings.sampling import Mixture, sample_scene
from training.drawings.scene import INKS, THINGS, ColouredStrokes, Item, Relation, Scene, Size, scene_strokes
from training.drawings.strokes import bounds
from training.drawings.styles import Style, broad_nib, loose_pencil
from training.drawings.word_lists import TEST_WORDS, TRAINING_WORDS, made_up_word, training_word


def ink_centre(image: Image.Image, ink: str) -> tuple[float, float]:
    """Mean x and y of the pixels with about this colour."""
    distance = np.abs(np.array(image, dtype=float) - np.array(INKS[ink])).sum(axis=2)
    rows, columns = np.nonzero(distance < 60)
    return float(columns.mean()), float(rows.mean())


@pytest.mark.parametrize("name", THINGS)
def test_thing_fills_its_square(name: str) -> None:
    left, top, right, bottom = bounds(THINGS[name](np.random.default_rng(0)))
    assert min(left, top) >= -1.15
    assert max(right, bottom) <= 1.15
    assert max(right - left, bottom - top) >= 1.5


def test_thing_size_does_not_depend_on_canvas() -> None:
    scene = Scene((Item("thing", "house", "blue"),), None, "white")
    widths, centres = [], []
    for side in (512, 1024):
        (item,) = scene_strokes(scene, (side, side), np.random.default_rng(1))
        left, top, right, bottom = bounds(item.strokes)
        widths.append(right - left)
        centres.append(((left + right) / 2 - side / 2, (top + bottom) / 2 - side / 2))
    assert widths[0] == pytest.approx(widths[1])
    assert centres[0] == pytest.approx(centres[1])


def test_same_seed_gives_same_image() -> None:
    scenes = [sample_scene(np.random.default_rng(3), Mixture()) for _ in range(2)]
    assert scenes[0] == scenes[1]
    first, second = (render(scenes[0], (64, 64), np.random.default_rng(4)) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != render(scenes[0], (64, 64), np.random.default_rng(5)).tobytes()


@pytest.mark.parametrize(
    ("relation", "axis", "sign"), [("left of", 0, -1), ("right of", 0, 1), ("above", 1, -1), ("below", 1, 1)]
)
@pytest.mark.parametrize("size", [(128, 128), (192, 96), (96, 192)])
def test_first_thing_is_placed_by_relation(relation: Relation, axis: int, sign: int, size: Size) -> None:
    scene = Scene((Item("thing", "star", "red"), Item("thing", "heart", "blue")), relation, "white")
    image = render(scene, size, np.random.default_rng(0))
    difference = ink_centre(image, "red")[axis] - ink_centre(image, "blue")[axis]
    assert difference * sign > size[axis] / 8


@pytest.mark.parametrize("size", [(96, 96), (160, 64), (64, 160)])
def test_image_edge_has_no_ink(size: Size) -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        scene = sample_scene(rng, Mixture(labelled=0.3))
        image = np.array(render(scene, size, rng), dtype=int)
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert np.ptp(edge, axis=0).max() < 25, scene


def test_prompt_names_all_but_black_ink() -> None:
    rng = np.random.default_rng(2)
    for _ in range(500):
        scene = sample_scene(rng, Mixture())
        text = prompt(scene, rng)
        for item in scene.items:
            names = NAMES.get(item.name, (item.name,)) if item.kind == "thing" else (item.name,)
            assert any(name in text for name in names), (scene, text)
            assert item.ink in text or item.ink == "black", (scene, text)
        assert (scene.background in text) or scene.background == "white"


def test_training_words_exclude_test_words() -> None:
    rng = np.random.default_rng(0)
    assert not {training_word(rng) for _ in range(5000)} & set(TEST_WORDS)
    assert not set(TRAINING_WORDS) & set(TEST_WORDS)


def test_made_up_words_cover_all_letter_pairs() -> None:
    rng = np.random.default_rng(0)
    words = [made_up_word(rng) for _ in range(20000)]
    pairs = {pair for word in words for pair in pairwise(word)}
    assert len(pairs) == 26 * 26
    assert {len(word) for word in words} == {2, 3, 4, 5}


def test_held_out_scenes_use_test_words() -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, Mixture(word=1), held_out=True) for _ in range(100)]
    assert {item.name for scene in scenes for item in scene.items} <= set(TEST_WORDS)


@pytest.mark.parametrize("style", [broad_nib, loose_pencil])
def test_style_keeps_ink_and_position(style: Style) -> None:
    scene = Scene((Item("thing", "star", "red"),), None, "white")
    plain = render(scene, (256, 256), np.random.default_rng(0))
    styled = render(scene, (256, 256), np.random.default_rng(0), style=style)
    assert styled.tobytes() != plain.tobytes()
    assert ink_centre(styled, "red") == pytest.approx(ink_centre(plain, "red"), abs=8)


def test_broad_nib_is_thick_across_its_edge() -> None:
    def covered_pixels(end: tuple[float, float]) -> int:
        strokes = ColouredStrokes([np.array([(60.0, 60.0), end])], (0, 0, 0), 5.0)
        return int((coverage(broad_nib([strokes], np.random.default_rng(0))[0], (128, 128)) > 0.5).sum())

    along, across = covered_pixels((90.0, 30.0)), covered_pixels((90.0, 90.0))
    assert across > 1.5 * along


def test_low_jitter_reduces_variation() -> None:
    scene = Scene((Item("thing", "cat", "black"),), None, "white")

    def difference(jitter: float) -> float:
        first, second = (
            np.array(render(scene, (96, 96), np.random.default_rng(seed), jitter), float) for seed in (1, 2)
        )
        return float(np.abs(first - second).mean())

    assert difference(0.1) < 0.6 * difference(1.0)


@pytest.mark.parametrize("word", ["mill", "jumbo"])
def test_letters_are_equally_wide_and_joined(word: str) -> None:
    strokes = handwriting(word, np.random.default_rng(0))
    points = np.concatenate(strokes)
    points_per_letter = np.histogram(points[:, 0], bins=len(word), range=(-len(word) / 2, len(word) / 2))[0]
    assert (points_per_letter > 3).all()
    ends = np.array([stroke[index] for stroke in strokes for index in (0, -1)])
    for border in np.arange(1, len(word)) - len(word) / 2:
        assert np.hypot(*(ends - (border, 0)).T).min() < 0.1
