"""How many pictures show what was asked: things, inks, words, in shares of 1. Pure; knows neither models nor files."""

from collections.abc import Sequence

from training.drawings.scene import Scene
from training.evaluation.recogniser import Seen

INK_FROM = 0.5
"""Sureness from which an ink counts as seen."""


def things_right(scene: Scene, seen: Seen) -> bool | None:
    """Whether the things asked are the likeliest ones; None if none was asked."""
    asked = {item.name for item in scene.items if item.kind == "thing"}
    return seen.likeliest(len(asked)) == asked and all(seen.things[name] > 0.5 for name in asked) if asked else None


def inks_right(scene: Scene, seen: Seen) -> bool:
    """Whether just the inks asked were used."""
    return {name for name, sure in seen.inks.items() if sure > INK_FROM} == {item.ink for item in scene.items}


def word_right(scene: Scene, seen: Seen) -> bool | None:
    """Whether the word is read letter by letter; None if none was asked."""
    asked = next((item.name for item in scene.items if item.kind == "word"), None)
    return None if asked is None else seen.word == asked


def scores(scenes: Sequence[Scene], seen: Sequence[Seen]) -> dict[str, float]:
    """Shares right of pictures in which a `thing`, an `ink`, a `word` was asked; what none asked for is left out."""
    pairs = list(zip(scenes, seen, strict=True))
    right: dict[str, list[bool | None]] = {
        "thing": [things_right(*pair) for pair in pairs],
        "ink": [inks_right(*pair) for pair in pairs],
        "word": [word_right(*pair) for pair in pairs],
    }
    asked = {name: [answer for answer in answers if answer is not None] for name, answers in right.items()}
    return {name: round(sum(answers) / len(answers), 4) for name, answers in asked.items() if answers}
