"""Words to write: for training, for tests, and random ones."""

from string import ascii_lowercase

from training.drawings.strokes import Rng

_TEST = """
    bat bed box bug cap cow cry day den dog dry ear egg eye fan fig fox fun gum hen hot ice elf jam jar joy kid
    leg lip log map mud net nut oak oil owl pan hub pig pot ram rug sea sky tap ten gem van wax web wig yes zip
    zoo
"""
_TRAINING = """
    act add age ago aid aim air all and ant any ape arm art ask bad bag ban bar bay bee bet big bit bow boy bun
    bus but buy can cob cod cot cub cue cut dad dam dew did dig dim dip dot dug eat elm end era fad far fat fed
    few fin fit fix fly fog for fry fur gap gas get god got gun gut guy had ham has hid him hip hit hop how hug
    hum hut ill inn its jet job jog jug keg kin kit lab lad lap law lay led let lid lie lit lot low mad man mat
    may men met mix mob mop mug nap new nil nod nor not now nun odd off old one opt our out own pad paw pay pea
    peg pet pie pin pit pod pop pub put ran rat raw ray rib rid rip rob rod rot row rub run rye sad sat saw say
    set sew she shy sin sip sir sit six ski sob son sow soy spy sum tan tar tax tea tie tin tip toe ton top tow
    try tub tug two urn use vet vow war was way wed wet who why win wit won yak yam yap yet you zen hello world
    love home open good happy fresh music river winter summer spring garden paper dream light night morning
    friend peace smile magic ocean water green apple coffee bread honey sugar lemon salad pizza party dance
    story tiger zebra quiet queen jolly jumbo vivid brave quick seven eight three five four nine zero blue milk
    rain snow wind fire gold silver stone sand wave hope luck wish kind calm wild free slow fast tall tiny huge
    soft warm cool dark cafe menu sale stop exit
"""
TEST_WORDS = tuple(_TEST.split())
"""Words of three letters that never occur in training."""
TRAINING_WORDS = tuple(_TRAINING.split())
RANDOM_WORD_SHARE = 0.6
"""Share of random words."""

_CONSONANTS, _VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"
_ANY_ORDER_SHARE = 0.5
"""Share of random words with letters in any order: pronounceable words contain too few letter pairs."""


def _letters(rng: Rng, length: int) -> list[str]:
    if rng.random() < _ANY_ORDER_SHARE:
        return list(rng.choice(list(ascii_lowercase), length))
    first = int(rng.integers(2))
    return [str(rng.choice(list(_VOWELS if (k + first) % 2 else _CONSONANTS))) for k in range(length)]


def made_up_word(rng: Rng) -> str:
    """Returns a random word. Such words cover letters and positions that are rare in real words."""
    while True:
        word = "".join(_letters(rng, int(rng.choice([2, 3, 4, 5], p=[0.1, 0.6, 0.2, 0.1]))))
        if word not in TEST_WORDS:
            return word


def training_word(rng: Rng, longest: int = 6) -> str:
    if rng.random() < RANDOM_WORD_SHARE:
        return made_up_word(rng)
    fitting = [word for word in TRAINING_WORDS if len(word) <= longest]
    return str(rng.choice(fitting))
