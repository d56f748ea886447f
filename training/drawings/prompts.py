"""Prompts for scenes, in varied English.

A prompt describes the full scene, but may omit a black ink.
"""

from training.drawings.scene import Item, Scene
from training.drawings.strokes import Rng

NAMES: dict[str, tuple[str, ...]] = {
    "pine": ("pine tree", "pine", "fir tree"),
    "cat": ("cat", "cat", "kitten"),
    "boat": ("boat", "sailboat"),
    "cup": ("cup", "cup of tea", "mug"),
    "bicycle": ("bicycle", "bike"),
    "face": ("face", "smiling face", "smiley"),
    "lamp": ("lamp", "table lamp"),
    "hat": ("hat", "top hat"),
    "moon": ("moon", "crescent moon"),
    "flower": ("flower", "blossom"),
    "tree": ("tree", "tree", "round tree"),
    "balloon": ("balloon",),
    "key": ("key", "old key"),
    "leaf": ("leaf",),
}
"""Names of things. A thing without an entry has only its own name."""

ONE = (
    "a {ink} sketch of {a_thing}",
    "a {ink} drawing of {a_thing}",
    "{a_thing} drawn in {ink} ink",
    "a {ink} line drawing of {a_thing}",
    "sketch of {a_thing} in {ink}",
    "{ink} sketch of {a_thing}",
    "a {ink} {thing}",
    "{thing}, {ink} ink",
    "draw {a_thing} in {ink}",
    "a simple {ink} sketch of {a_thing}",
    "{a_thing} in {ink} pen",
    "a picture of a {ink} {thing}",
    "a hand drawn {ink} {thing}",
)
ONE_BLACK = (
    "a sketch of {a_thing}",
    "{a_thing}",
    "a drawing of {a_thing}",
    "{thing}",
    "a line drawing of {a_thing}",
    "please draw {a_thing}",
)
SAME_INK = (
    "a {ink} sketch of {a} {relation} {b}",
    "a {ink} drawing of {a} {relation} {b}",
    "{a} {relation} {b}, {ink} ink",
    "{a} {relation} {b} in {ink}",
    "{ink} sketch of {a} {relation} {b}",
)
SAME_BLACK = ("a sketch of {a} {relation} {b}", "{a} {relation} {b}", "a drawing of {a} {relation} {b}")
OWN_INK = (
    "a {ink_a} {thing_a} {relation} a {ink_b} {thing_b}",
    "a sketch of a {ink_a} {thing_a} {relation} a {ink_b} {thing_b}",
    "a drawing of a {ink_a} {thing_a} {relation} a {ink_b} {thing_b}",
)
WORD = (
    "the word {word} handwritten in {ink} ink",
    "the word {word} in {ink} handwriting",
    "the word {word} written in {ink}",
    "{ink} handwriting that says {word}",
    'the word "{word}" in {ink} ink',
    "handwriting in {ink} ink, the word {word}",
    "write {word} in {ink}",
    "a note in {ink} handwriting that reads {word}",
    'handwritten "{word}" in {ink}',
)
WORD_BLACK = (
    "the word {word} handwritten",
    "handwriting that says {word}",
    'the handwritten word "{word}"',
    "write the word {word}",
)
LABELLED = (
    "{a} {relation} the word {word} in {ink}",
    "a {ink} sketch of {a} {relation} the word {word}",
    'a {ink} drawing of {a} {relation} the handwritten word "{word}"',
)
RELATIONS = {
    "left of": ("left of", "to the left of", "and", "next to", "beside"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
"""`a house and a tree` puts the house on the left."""


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _random_name(item: Item, rng: Rng) -> str:
    return str(rng.choice(NAMES.get(item.name, (item.name,))))


def _one(item: Item, rng: Rng) -> str:
    omit_ink = item.ink == "black" and rng.random() < 0.5
    if item.kind == "word":
        return str(rng.choice(WORD_BLACK if omit_ink else WORD)).format(word=item.name, ink=item.ink)
    thing = _random_name(item, rng)
    template = str(rng.choice(ONE_BLACK if omit_ink else ONE))
    return template.format(thing=thing, a_thing=_article(thing), ink=item.ink)


def _two(scene: Scene, rng: Rng) -> str:
    first, second = scene.items
    assert scene.relation is not None
    relation = str(rng.choice(RELATIONS[scene.relation]))
    if second.kind == "word":
        return str(rng.choice(LABELLED)).format(
            a=_article(_random_name(first, rng)), relation=relation, word=second.name, ink=first.ink
        )
    thing_a, thing_b = _random_name(first, rng), _random_name(second, rng)
    if first.ink != second.ink:
        return str(rng.choice(OWN_INK)).format(
            ink_a=first.ink, ink_b=second.ink, thing_a=thing_a, thing_b=thing_b, relation=relation
        )
    templates = SAME_BLACK if first.ink == "black" and rng.random() < 0.5 else SAME_INK
    return str(rng.choice(templates)).format(a=_article(thing_a), b=_article(thing_b), relation=relation, ink=first.ink)


def prompt(scene: Scene, rng: Rng) -> str:
    """Returns a random prompt for this scene."""
    text = _one(scene.items[0], rng) if len(scene.items) == 1 else _two(scene, rng)
    if scene.background != "white":
        text += f" on {scene.background} paper"
    elif rng.random() < 0.15:
        text += str(rng.choice([" on white paper", " on paper"]))
    text = text.replace(" a orange", " an orange")
    return text.replace("a orange", "an orange") if text.startswith("a orange") else text
