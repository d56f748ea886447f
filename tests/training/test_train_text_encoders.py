"""Training of the text encoders: questions, answers and loss."""

import numpy as np
import pytest
import torch

from training.drawings.scene import INKS, THINGS, Item, Scene
from training.text_encoders import Encoders
from training.train_recogniser import targets
from training.train_text_encoders import NOTHING, QUESTIONS, ProbeHeads, answers, batch, compute_loss

STAR, HEART = Item("thing", "star", "red"), Item("thing", "heart", "blue")
THING_NAMES, INK_NAMES = list(THINGS), list(INKS)


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        (
            Scene((STAR,), None, "cream"),
            {
                "first": THING_NAMES.index("star"),
                "second": len(THING_NAMES) + 1,
                "first ink": INK_NAMES.index("red"),
                "paper": 1,
            },
        ),
        (Scene((STAR,), None, "white"), {"relation": NOTHING, "second ink": NOTHING, "letter 0": NOTHING}),
        (
            Scene((STAR, HEART), "above", "white"),
            {"second": THING_NAMES.index("heart"), "second ink": INK_NAMES.index("blue"), "relation": 2},
        ),
        (
            Scene((Item("word", "cab", "red"),), None, "white"),
            {"first": len(THING_NAMES), "letter 0": 3, "letter 1": 1, "letter 2": 2, "letter 3": 0, "letter 5": 0},
        ),
    ],
)
def test_answers_match_scene(scene: Scene, expected: dict[str, int]) -> None:
    actual = dict(zip(QUESTIONS, answers(scene), strict=True))
    assert {name: actual[name] for name in expected} == expected


def test_loss_ignores_missing_answers() -> None:
    """Even if no scene of a batch has the answer."""
    encoders, heads = Encoders(), ProbeHeads()
    expected = torch.tensor([answers(Scene((STAR,), None, "white"))])
    logits = heads(*encoders(["a red star"], 8))
    assert torch.isfinite(compute_loss(logits, expected))


def test_training_halves_probe_loss() -> None:
    torch.manual_seed(0)
    encoders, heads = Encoders(), ProbeHeads()
    optimizer = torch.optim.AdamW([*encoders.parameters(), *heads.parameters()], lr=3e-3)
    prompts, expected = batch(np.random.default_rng(0), 8)
    losses = []
    for _ in range(12):
        loss = compute_loss(heads(*encoders(prompts, encoders.longest(prompts))), expected)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_clip_ignores_padding() -> None:
    encoders = Encoders().eval()
    with torch.no_grad():
        alone = encoders(["a red star"], 16)[1]
        padded = encoders(["a red star", "a blue sketch of a heart to the left of a star"], 16)[1][:1]
    torch.testing.assert_close(alone, padded, atol=1e-5, rtol=1e-4)


def test_recogniser_targets_have_things_inks_and_letters() -> None:
    scenes = [Scene((STAR, HEART), "left of", "white"), Scene((STAR, Item("word", "cab", "red")), "above", "white")]
    things, inks, letters = targets(scenes)
    assert {THING_NAMES[index] for index in things[0].nonzero()[:, 0]} == {"star", "heart"}
    assert {THING_NAMES[index] for index in things[1].nonzero()[:, 0]} == {"star"}
    assert {INK_NAMES[index] for index in inks[0].nonzero()[:, 0]} == {"red", "blue"}
    assert letters == [[], [3, 1, 2]]
