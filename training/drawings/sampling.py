"""Random scenes: which things, inks, words and relations, and how often. Seeded; knows nothing of pixels."""

from dataclasses import dataclass

from training.drawings.scene import INKS, PAPERS, THINGS, Item, Relation, Scene
from training.drawings.strokes import Rng
from training.drawings.word_lists import TEST_WORDS, training_word


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of the kinds of scenes; what is left over is one thing alone."""

    two_things: float = 0.25
    word: float = 0.3
    labelled: float = 0.05
    longest_word: int = 6
    unsteadiness: float = 1.0
    """How far a hand strays from the plain form of things, their size and their place."""


RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below")


def _ink(rng: Rng) -> str:
    return str(rng.choice(list(INKS)))


def _paper(rng: Rng) -> str:
    return str(rng.choice(list(PAPERS), p=[0.7, 0.18, 0.12]))


def _thing(rng: Rng, ink: str) -> Item:
    return Item("thing", str(rng.choice(list(THINGS))), ink)


def sampled(rng: Rng, mixture: Mixture, *, held_out: bool = False) -> Scene:
    """One scene. `held_out` takes words that never occur in training, all of three letters."""
    kind, ink, paper = rng.random(), _ink(rng), _paper(rng)
    word = str(rng.choice(TEST_WORDS)) if held_out else training_word(rng, mixture.longest_word)
    if kind < mixture.word:
        return Scene((Item("word", word, ink),), None, paper)
    if kind < mixture.word + mixture.labelled:
        return Scene((_thing(rng, ink), Item("word", word, ink)), "above", paper)
    if kind < mixture.word + mixture.labelled + mixture.two_things:
        # Side by side more often than not: it is what "a house and a tree" asks for.
        relation: Relation = RELATIONS[int(rng.choice(4, p=[0.5, 0.1, 0.2, 0.2]))]
        first = _thing(rng, ink)
        second = _thing(rng, ink if rng.random() < 0.5 else _ink(rng))
        while second.name == first.name:
            second = _thing(rng, second.ink)
        return Scene((first, second), relation, paper)
    return Scene((_thing(rng, ink),), None, paper)
