"""The two tokenizers, made from the words that prompts are written in: the real classes, small vocabularies.

A word of the list is one token, any other is spelt letter by letter: so a word to be written by hand reaches the model
as its letters. Knows nothing of models.
"""

import json
import string
from pathlib import Path

from transformers import CLIPTokenizer, T5Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from training.drawings import prompts
from training.drawings.scene import INKS, PAPERS, THINGS

TEXT_TOKENS = 64
CLIP_TOKENS = 77
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"
_SENTINELS = 100
_ALSO = """
    an at by for from in into is it of over the to under with without please style image illustration ink pencil pen
    paper picture sketch drawing handwriting handwritten written writes note says reads word text small big large simple
    draw paint make show me one two and on top next beside
"""
"""Words of everyday prompts beyond the templates of the training data."""


def words() -> list[str]:
    """Every word of the prompts' grammar, once, in a fixed order."""
    texts = [_ALSO, *INKS, *PAPERS, *THINGS]
    for names in prompts.NAMES.values():
        texts += names
    for name in ("ONE", "ONE_BLACK", "SAME_INK", "SAME_BLACK", "OWN_INK", "WORD", "WORD_BLACK", "LABELLED"):
        texts += getattr(prompts, name)
    for relations in prompts.RELATIONS.values():
        texts += relations
    found = " ".join(texts).replace('"', " ").replace(",", " ").split()
    return sorted({word for word in found if word.isalpha()})


def t5_tokenizer() -> T5Tokenizer:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(character, -8.0) for character in string.printable.strip()]
    whole = [(f"▁{form}", -5.0) for word in words() for form in dict.fromkeys([word, word.capitalize()])]
    sentinels = [(f"<extra_id_{index}>", 0.0) for index in reversed(range(_SENTINELS))]
    return T5Tokenizer(
        vocab=[*special, *letters, *whole, *sentinels], extra_ids=_SENTINELS, model_max_length=TEXT_TOKENS
    )


def clip_tokenizer() -> CLIPTokenizer:
    vocabulary, merges = _byte_pairs()
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_TOKENS)


def save_clip_tokenizer(folder: Path) -> None:
    """Writes the files that it has in FLUX repositories: a vocabulary and its merges, no `tokenizer.json`."""
    clip_tokenizer().save_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    vocabulary, merges = _byte_pairs()
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": END, "unk_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")


def _byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    alphabet = list(bytes_to_unicode().values())
    tokens = dict.fromkeys([*alphabet, *(character + _END_OF_WORD for character in alphabet)])
    merges: dict[tuple[str, str], None] = {}
    for word in words():
        if len(word) < 2:
            continue
        parts = [*word[:-1], word[-1] + _END_OF_WORD]
        # From the end of the word, so that a merge always needs a grammar word's own ending: others stay spelt.
        tail = parts.pop()
        while parts:
            head = parts.pop()
            merges[head, tail] = None
            tail = head + tail
            tokens[tail] = None
    # The end token has the highest id: CLIP's text model of FLUX pools at the highest id of a prompt.
    return {token: index for index, token in enumerate([*tokens, BEGIN, END])}, list(merges)
