"""Random scenes: things, inks, words and relations."""

from dataclasses import dataclass

from training.drawings.scene import BACKGROUNDS, INKS, THINGS, Item, Relation, Scene
from training.drawings.strokes import Rng
from training.drawings.word_lists import TEST_WORDS, training_word


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of the kinds of scenes; the rest are single things."""

    two_things: float = 0.25
    word: float = 0.3
    labelled: float = 0.05
    longest_word: int = 6
    jitter: float = 1.0
    """Random variation of shape, size and position; 1 is the default amount."""


RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below")


def _ink(rng: Rng) -> str:
    return str(rng.choice(list(INKS)))


def _background(rng: Rng) -> str:
    return str(rng.choice(list(BACKGROUNDS), p=[0.7, 0.18, 0.12]))


def _thing(rng: Rng, ink: str) -> Item:
    return Item("thing", str(rng.choice(list(THINGS))), ink)


def sample_scene(rng: Rng, mixture: Mixture, *, held_out: bool = False) -> Scene:
    """Samples one scene. `held_out` uses words of three letters that never occur in training."""
    kind, ink, background = rng.random(), _ink(rng), _background(rng)
    word = str(rng.choice(TEST_WORDS)) if held_out else training_word(rng, mixture.longest_word)
    if kind < mixture.word:
        return Scene((Item("word", word, ink),), None, background)
    if kind < mixture.word + mixture.labelled:
        return Scene((_thing(rng, ink), Item("word", word, ink)), "above", background)
    if kind < mixture.word + mixture.labelled + mixture.two_things:
        # Prompts such as "a house and a tree" mean side by side, so "left of" is the most frequent.
        relation: Relation = RELATIONS[int(rng.choice(4, p=[0.5, 0.1, 0.2, 0.2]))]
        first = _thing(rng, ink)
        second = _thing(rng, ink if rng.random() < 0.5 else _ink(rng))
        while second.name == first.name:
            second = _thing(rng, second.ink)
        return Scene((first, second), relation, background)
    return Scene((_thing(rng, ink),), None, background)
