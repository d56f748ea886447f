"""Tokenizers with small vocabularies: a byte-level BPE for CLIP and a unigram model for T5.

The classes, special tokens and files are those of FLUX.
"""

import json
import string
from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import CLIPTokenizer, T5Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

_TEXT = """
    a an and at by for from in into is it of on or over the to under with without
    animal bear bird boat bridge car castle cat city cloud coast dog dragon face field fire fish flower forest garden
    girl hand hill horse house island kitchen lake leaf light lighthouse man moon mountain ocean person portrait
    rain river robot room sailboat sea sign sky snow star street sun sunset table train tree village wall water window
    woman wood
    big black blue bright brown dark gold green grey large old orange pink purple red round silver small soft white
    yellow young
    art cinematic detailed drawing film handwriting illustration ink oil painting paper pencil photo photograph
    picture sketch style text watercolour writing
"""
WORDS = tuple(_TEXT.split())
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
CLIP_TOKENS = 77
END_OF_WORD = "</w>"
_SENTINELS = 100


Merges = Sequence[tuple[str, str]]
"""Pairs to merge, in order."""


def clip_tokenizer() -> CLIPTokenizer:
    return make_clip_tokenizer(_merges())


def make_clip_tokenizer(merges: Merges) -> CLIPTokenizer:
    return CLIPTokenizer(vocab=_clip_ids(merges), merges=list(merges), model_max_length=CLIP_TOKENS)


def t5_tokenizer(max_sequence_length: int) -> T5Tokenizer:
    """`max_sequence_length`, the longest prompt in tokens, is stored in the tokenizer's configuration."""
    return make_t5_tokenizer(WORDS, max_sequence_length)


def make_t5_tokenizer(words: Iterable[str], max_sequence_length: int) -> T5Tokenizer:
    """Each of `words` is one token, case-sensitive; other words are spelt."""
    special_tokens = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(character, -8.0) for character in string.printable.strip()]
    word_tokens = [(f"▁{word}", -5.0) for word in words]
    sentinels = [(f"<extra_id_{index}>", 0.0) for index in reversed(range(_SENTINELS))]
    return T5Tokenizer(
        vocab=[*special_tokens, *letters, *word_tokens, *sentinels],
        extra_ids=_SENTINELS,
        model_max_length=max_sequence_length,
    )


def save_clip_tokenizer(folder: Path, merges: Merges | None = None) -> None:
    """Writes the files of FLUX's repositories: `vocab.json` and `merges.txt`, without `tokenizer.json`.

    Uses the test checkpoints' merges by default.
    """
    merges = _merges() if merges is None else merges
    make_clip_tokenizer(merges).save_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(_clip_ids(merges), ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": END, "unk_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")


def _clip_ids(merges: Merges) -> dict[str, int]:
    """Returns ids of all bytes, all bytes at the end of a word, and all merges."""
    alphabet = list(bytes_to_unicode().values())
    joined = ["".join(pair) for pair in merges]
    tokens = dict.fromkeys([*alphabet, *(character + END_OF_WORD for character in alphabet), *joined])
    # The end token has the highest id: CLIP's text model of FLUX pools at the highest id of a prompt.
    return {token: index for index, token in enumerate([*tokens, BEGIN, END])}


def _merges() -> Merges:
    """Merges each word's letters from left to right."""
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        first, *rest = [*word[:-1], word[-1] + END_OF_WORD]
        for symbol in rest:
            merges[first, symbol] = None
            first += symbol
    return list(merges)
