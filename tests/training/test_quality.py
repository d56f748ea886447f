"""What the quality benchmark draws: every variant, precision, size and guidance, and only what training never saw."""

from benchmarks.quality import MIXTURE, held_out, rows
from training.drawings.words import TEST_WORDS


def test_the_table_has_each_size_in_both_precisions_and_each_guidance_once() -> None:
    table = [str(row) for row in rows([(256, 256), (1024, 1024)], [1.0, 3.0, 7.0])]
    assert table == [
        "dev bf16 256x256 28 steps guidance 3",
        "dev bf16 1024x1024 28 steps guidance 3",
        "dev fp8 256x256 28 steps guidance 3",
        "dev fp8 1024x1024 28 steps guidance 3",
        "dev bf16 256x256 28 steps guidance 1",
        "dev bf16 256x256 28 steps guidance 7",
        "schnell bf16 256x256 4 steps",
        "schnell bf16 1024x1024 4 steps",
    ]


def test_every_row_is_asked_the_same_and_no_word_is_one_of_training() -> None:
    scenes, prompts = held_out(60, seed=0)
    assert (scenes, prompts) == held_out(60, seed=0)
    assert prompts != held_out(60, seed=1)[1]
    written = {item.name for scene in scenes for item in scene.items if item.kind == "word"}
    assert written
    assert written <= set(TEST_WORDS)


def test_held_out_prompts_ask_for_one_thing_two_things_and_words() -> None:
    scenes, _ = held_out(200, seed=0)
    kinds = {tuple(item.kind for item in scene.items) for scene in scenes}
    assert kinds == {("thing",), ("thing", "thing"), ("word",)}
    assert MIXTURE.labelled == 0
