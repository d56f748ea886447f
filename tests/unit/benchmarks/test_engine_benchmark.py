"""The engine's benchmark: its rows, its arithmetic, and the transformer that it makes up."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from optimum.quanto import QLinear

from benchmarks.engine import main
from benchmarks.geometry import FLUX1_DEV, flops_per_pass, random_transformer

CPU = torch.device("cpu")
SMALL = {
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "axes_dims_rope": (8, 28, 28),
    "joint_attention_dim": 48,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
}


def test_each_row_tells_how_fast_its_steps_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    main(["--device", "cpu", "--sizes", "64x48", "--batches", "1", "2", "--steps", "2"])
    printed = capsys.readouterr()
    assert "[4/4] precision fp8, size 64x48, batch 2" in printed.err
    (line,) = printed.out.splitlines()
    result = json.loads(line)
    assert result["arguments"]["geometry"] == "embedded"
    assert result["where"]["versions"]["torch"] == version("torch")
    rows = {(row["precision"], row["size"], row["batch"]): row for row in result["rows"]}
    assert len(rows) == 4
    assert rows["bf16", "64x48", 1]["weights_gb"] > 1.8 * rows["fp8", "64x48", 1]["weights_gb"]
    for row in rows.values():
        assert row["step_ms"] == pytest.approx(row["batch"] * row["step_ms_per_image"], rel=0.01, abs=0.02)
        assert 0 < row["step_ms"] <= row["slowest_step_ms"]
        assert row["tflops_per_s"] > 0


@pytest.mark.parametrize("wrong", [["--batches", "0"], ["--sizes", "64"], ["--precisions", "fp4"]])
def test_arguments_that_mean_nothing_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(wrong)
    assert wrong[0] in capsys.readouterr().err


def test_operations_are_counted_as_the_formulas_say() -> None:
    """Two for each weight and row, and four for each pair of tokens and channel of attention."""
    picture, text, width = 24, 10, 128
    modulation, one_row_embedders = (6 + 6 + 3 + 2) * width**2, 2 * (256 + width) * width + (32 + width) * width
    blocks = 2 * 12 * width**2 * (picture + text)
    per_token = 2 * 64 * width * picture + 48 * width * text
    attention = 2 * 4 * (picture + text) ** 2 * width
    transformer = random_transformer(SMALL, "bf16", CPU)
    expected = 2 * (modulation + one_row_embedders + blocks + per_token) + attention
    assert flops_per_pass(transformer, picture, text) == expected


def test_the_true_geometry_has_the_true_number_of_weights() -> None:
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**FLUX1_DEV)
    assert sum(weight.numel() for weight in transformer.parameters()) == 11_901_408_320


def test_made_up_weights_come_from_a_seed_and_keep_the_size_of_what_they_multiply() -> None:
    one, other = (random_transformer(SMALL, "bf16", CPU).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    weight = one["transformer_blocks.0.ff.net.0.proj.weight"]
    assert weight.dtype == torch.bfloat16
    assert weight.float().std() == pytest.approx(128**-0.5, rel=0.02)


def test_in_fp8_they_are_quantized_and_in_float32_they_are_not_rounded() -> None:
    quantized = random_transformer(SMALL, "fp8", CPU)
    assert all(isinstance(layer, QLinear) for layer in quantized.modules() if isinstance(layer, torch.nn.Linear))
    assert random_transformer(SMALL, "float32", CPU).dtype == torch.float32
