"""The tokenizers: known words whole, others by their letters, and the same from their files."""

from pathlib import Path

import pytest
from transformers import CLIPTokenizer, T5TokenizerFast

from training import vocabulary
from training.drawings.word_lists import TEST_WORDS

PROMPT = 'A red sketch of a sailboat, the word "zoo" in blue ink'


def test_t5_reads_a_known_word_as_one_token_and_spells_any_other() -> None:
    assert vocabulary.t5_tokenizer().tokenize("a red zoo") == ["▁a", "▁red", "▁", "z", "o", "o"]


def test_every_word_kept_for_tests_reaches_t5_as_its_letters() -> None:
    tokenizer = vocabulary.t5_tokenizer()
    spelt = [word for word in TEST_WORDS if tokenizer.tokenize(word) == ["▁", *word]]
    assert len(spelt) >= len(TEST_WORDS) - 2, set(TEST_WORDS) - set(spelt)


@pytest.mark.parametrize("said", [PROMPT, "", "größer 猫", "x" * 400])
def test_tokenizers_read_the_same_from_their_files(tmp_path: Path, said: str) -> None:
    vocabulary.save_clip_tokenizer(tmp_path / "clip")
    vocabulary.t5_tokenizer().save_pretrained(tmp_path / "t5")
    clip, t5 = CLIPTokenizer.from_pretrained(tmp_path / "clip"), T5TokenizerFast.from_pretrained(tmp_path / "t5")
    assert clip(said).input_ids == vocabulary.clip_tokenizer()(said).input_ids
    assert t5(said).input_ids == vocabulary.t5_tokenizer()(said).input_ids
    assert t5.model_max_length == vocabulary.TEXT_TOKENS


def test_clip_finds_the_end_of_a_prompt_at_its_highest_id() -> None:
    ids = vocabulary.clip_tokenizer()(PROMPT).input_ids
    assert ids.index(max(ids)) == len(ids) - 1
