"""The tokenizers: known words are one token, others are spelt, and saved files give the same ids."""

from pathlib import Path

import pytest
from transformers import CLIPTokenizer, T5TokenizerFast

from training import tokenizers
from training.drawings.word_lists import TEST_WORDS

PROMPT = 'A red sketch of a sailboat, the word "zoo" in blue ink'


def test_t5_spells_unknown_words() -> None:
    assert tokenizers.t5_tokenizer().tokenize("a red zoo") == ["▁a", "▁red", "▁", "z", "o", "o"]


def test_t5_spells_test_words() -> None:
    tokenizer = tokenizers.t5_tokenizer()
    spelt = [word for word in TEST_WORDS if tokenizer.tokenize(word) == ["▁", *word]]
    assert len(spelt) >= len(TEST_WORDS) - 2, set(TEST_WORDS) - set(spelt)


@pytest.mark.parametrize("text", [PROMPT, "", "größer 猫", "x" * 400])
def test_saved_tokenizers_give_same_ids(tmp_path: Path, text: str) -> None:
    tokenizers.save_clip_tokenizer(tmp_path / "clip")
    tokenizers.t5_tokenizer().save_pretrained(tmp_path / "t5")
    clip, t5 = CLIPTokenizer.from_pretrained(tmp_path / "clip"), T5TokenizerFast.from_pretrained(tmp_path / "t5")
    assert clip(text).input_ids == tokenizers.clip_tokenizer()(text).input_ids
    assert t5(text).input_ids == tokenizers.t5_tokenizer()(text).input_ids
    assert t5.model_max_length == tokenizers.TEXT_TOKENS


def test_clip_end_token_has_highest_id() -> None:
    ids = tokenizers.clip_tokenizer()(PROMPT).input_ids
    assert ids.index(max(ids)) == len(ids) - 1
