"""The two tokenizers, whose small vocabularies are the words of the prompt templates.

Words of the vocabulary are one token. Others are spelt letter by letter, so the model sees their letters.
"""

from pathlib import Path

from transformers import CLIPTokenizer, T5Tokenizer

from test_checkpoints import tokenizers
from test_checkpoints.tokenizers import END_OF_WORD, Merges, make_clip_tokenizer, make_t5_tokenizer
from training.drawings import prompts
from training.drawings.scene import BACKGROUNDS, INKS, THINGS

TEXT_TOKENS = 64
"""The maximum sequence length of T5."""
_EXTRA_WORDS = """
    an at by for from in into is it of over the to under with without please style image illustration ink pencil pen
    paper picture sketch drawing handwriting handwritten written writes note says reads word text small big large simple
    draw paint make show me one two and on top next beside
"""
"""Common words that the training templates do not contain."""


def words() -> list[str]:
    """Returns every word of the prompt templates once, sorted."""
    texts = [_EXTRA_WORDS, *INKS, *BACKGROUNDS, *THINGS]
    for names in prompts.NAMES.values():
        texts += names
    for name in ("ONE", "ONE_BLACK", "SAME_INK", "SAME_BLACK", "OWN_INK", "WORD", "WORD_BLACK", "LABELLED"):
        texts += getattr(prompts, name)
    for relations in prompts.RELATIONS.values():
        texts += relations
    found = " ".join(texts).replace('"', " ").replace(",", " ").split()
    return sorted({word for word in found if word.isalpha()})


def t5_tokenizer() -> T5Tokenizer:
    forms = (form for word in words() for form in dict.fromkeys([word, word.capitalize()]))
    return make_t5_tokenizer(forms, TEXT_TOKENS)


def clip_tokenizer() -> CLIPTokenizer:
    return make_clip_tokenizer(_merges())


def save_clip_tokenizer(folder: Path) -> None:
    tokenizers.save_clip_tokenizer(folder, _merges())


def _merges() -> Merges:
    merges: dict[tuple[str, str], None] = {}
    for word in words():
        if len(word) < 2:
            continue
        parts = [*word[:-1], word[-1] + END_OF_WORD]
        # Merges start at the end of a word, so that they do not apply to words outside the vocabulary.
        tail = parts.pop()
        while parts:
            head = parts.pop()
            merges[head, tail] = None
            tail = head + tail
    return list(merges)
