"""Scores: the shares of images that show the requested things, inks and words."""

from collections.abc import Sequence

from training.drawings.scene import Scene
from training.evaluation.recogniser import Recognition

MIN_INK_PROBABILITY = 0.5
"""An ink counts as found above this probability."""


def things_right(scene: Scene, recognition: Recognition) -> bool | None:
    """Returns whether the requested things are the most probable ones; None if the scene has none."""
    requested = {item.name for item in scene.items if item.kind == "thing"}
    return (
        recognition.likeliest(len(requested)) == requested and all(recognition.things[name] > 0.5 for name in requested)
        if requested
        else None
    )


def inks_right(scene: Scene, recognition: Recognition) -> bool:
    """Returns whether exactly the requested inks were found."""
    found = {name for name, probability in recognition.inks.items() if probability > MIN_INK_PROBABILITY}
    return found == {item.ink for item in scene.items}


def word_right(scene: Scene, recognition: Recognition) -> bool | None:
    """Returns whether the word is right in every letter; None if the scene has none."""
    requested = next((item.name for item in scene.items if item.kind == "word"), None)
    return None if requested is None else recognition.word == requested


def scores(scenes: Sequence[Scene], recognitions: Sequence[Recognition]) -> dict[str, float]:
    """Returns the shares of right images per score; scores that no scene requests are left out."""
    pairs = list(zip(scenes, recognitions, strict=True))
    right: dict[str, list[bool | None]] = {
        "thing": [things_right(*pair) for pair in pairs],
        "ink": [inks_right(*pair) for pair in pairs],
        "word": [word_right(*pair) for pair in pairs],
    }
    requested = {name: [answer for answer in answers if answer is not None] for name, answers in right.items()}
    return {name: round(sum(answers) / len(answers), 4) for name, answers in requested.items() if answers}
