"""The rows, prompts and style scores of the quality evaluation."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from serve.settings import Fp8Kernel
from training.drawings.word_lists import TEST_WORDS
from training.evaluation import quality, style
from training.evaluation.generation_tasks import MIXTURE, held_out
from training.evaluation.quality import rows, swept_rows
from training.evaluation.recogniser import Recogniser
from training.lora import STYLE_CONFIGS


def test_rows_have_each_size_in_both_precisions() -> None:
    assert [str(row) for row in rows([(256, 256), (1024, 1024)])] == [
        "dev bf16 256x256 28 steps guidance 3",
        "dev bf16 1024x1024 28 steps guidance 3",
        "dev fp8 256x256 28 steps guidance 3",
        "dev fp8 1024x1024 28 steps guidance 3",
        "schnell bf16 256x256 4 steps",
        "schnell bf16 1024x1024 4 steps",
        "schnell fp8 256x256 4 steps",
        "schnell fp8 1024x1024 4 steps",
    ]


def test_rows_can_be_limited_to_one_variant() -> None:
    assert {row.variant for row in rows([(256, 256)], ["schnell"])} == {"schnell"}


def test_table_generates_with_its_fp8_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernels = []
    monkeypatch.setattr(quality, "ImageGenerator", lambda *args, fp8_kernel: kernels.append(fp8_kernel))
    for kernel in get_args(Fp8Kernel):
        quality.Table(tmp_path, None, seed=0, fp8_kernel=kernel).generator(rows([(256, 256)])[0])
    assert kernels == ["auto", "rowwise", "quanto"]


def test_swept_rows_vary_guidance_and_ratio() -> None:
    assert [str(row) for row in swept_rows([1.0, 3.0, 7.0], ["16:9", "9:21"], (512, 512))] == [
        "dev bf16 512x512 28 steps guidance 1",
        "dev bf16 512x512 28 steps guidance 7",
        "dev bf16 672x384 28 steps guidance 3",
        "dev bf16 320x768 28 steps guidance 3",
    ]


@pytest.mark.parametrize("count", [20, pytest.param(40, marks=pytest.mark.slow_training)])
def test_style_score_separates_styled_drawings(count: int) -> None:
    config, size = STYLE_CONFIGS["sketch"], (384, 384)
    score, accuracy = style.fit(Recogniser.load(), config, size, seed=1, count=count)
    assert accuracy >= 0.9
    plain, styled = style.render_pairs(config, size, 5, np.random.default_rng(2))
    assert score.of(plain).mean() < 0.3
    assert score.of(styled).mean() > 0.7


def test_held_out_prompts_are_seeded_and_use_test_words() -> None:
    scenes, prompts = held_out(60, seed=0)
    assert (scenes, prompts) == held_out(60, seed=0)
    assert prompts != held_out(60, seed=1)[1]
    words = {item.name for scene in scenes for item in scene.items if item.kind == "word"}
    assert words
    assert words <= set(TEST_WORDS)


def test_held_out_scenes_have_things_pairs_and_words() -> None:
    scenes, _ = held_out(200, seed=0)
    kinds = {tuple(item.kind for item in scene.items) for scene in scenes}
    assert kinds == {("thing",), ("thing", "thing"), ("word",)}
    assert MIXTURE.labelled == 0
