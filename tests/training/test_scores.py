"""The scores of the quality evaluation, and CTC decoding."""

import pytest
import torch

from training.drawings.scene import Item, Scene
from training.evaluation.recogniser import LETTERS, Recognition, ctc_decode
from training.evaluation.scores import scores

STAR = Item("thing", "star", "red")
HEART = Item("thing", "heart", "blue")
ZOO = Item("word", "zoo", "red")


def recognition(
    things: dict[str, float] | None = None, inks: tuple[str, ...] = ("red",), word: str = ""
) -> Recognition:
    probabilities = {"star": 0.1, "heart": 0.1, "house": 0.1} | (things or {})
    return Recognition(probabilities, {name: 0.9 if name in inks else 0.1 for name in ("red", "blue")}, word)


@pytest.mark.parametrize(
    ("items", "recognised", "score", "expected"),
    [
        ((STAR,), recognition({"star": 0.9}), "thing", 1),
        ((STAR,), recognition({"star": 0.8, "house": 0.9}), "thing", 0),
        ((STAR,), recognition({"star": 0.4}), "thing", 0),
        ((STAR, HEART), recognition({"star": 0.9, "heart": 0.8}), "thing", 1),
        ((STAR, HEART), recognition({"star": 0.9}), "thing", 0),
        ((STAR,), recognition(), "ink", 1),
        ((STAR,), recognition(inks=("blue",)), "ink", 0),
        ((STAR,), recognition(inks=("red", "blue")), "ink", 0),
        ((STAR, HEART), recognition(inks=("red", "blue")), "ink", 1),
        ((ZOO,), recognition(word="zoo"), "word", 1),
        ((ZOO,), recognition(word="zo"), "word", 0),
    ],
)
def test_score_requires_exactly_the_requested_items(
    items: tuple[Item, ...], recognised: Recognition, score: str, expected: int
) -> None:
    scene = Scene(items, "left of" if len(items) == 2 else None, "white")
    assert scores([scene], [recognised])[score] == expected


def test_score_is_a_share_of_the_images_that_request_it() -> None:
    table = scores(
        [Scene((STAR,), None, "white"), Scene((ZOO,), None, "white")],
        [recognition({"star": 0.9}), recognition(word="zap")],
    )
    assert table == {"thing": 1.0, "ink": 1.0, "word": 0.0}


def test_unrequested_score_is_omitted() -> None:
    assert scores([Scene((ZOO,), None, "white")], [recognition(word="zoo")]) == {"ink": 1.0, "word": 1.0}


@pytest.mark.parametrize(
    ("columns", "word"), [("--z-oo-o--", "zoo"), ("zzoo", "zo"), ("----", ""), ("a-a", "aa"), ("cat", "cat")]
)
def test_ctc_decode_drops_repeats_and_blanks(columns: str, word: str) -> None:
    indices = torch.tensor([0 if letter == "-" else LETTERS.index(letter) + 1 for letter in columns])
    assert ctc_decode(torch.nn.functional.one_hot(indices, 27).T.float()) == word
