"""`python -m training`: the command lines and time shares of all parts."""

from pathlib import Path

import pytest

from training.__main__ import SHARES, commands


def test_time_shares_sum_to_one() -> None:
    assert sum(SHARES.values()) == pytest.approx(1)


def test_parts_run_after_their_dependencies() -> None:
    order = [" ".join(command[:2]) for command in commands(Path("r"), Path("o"), 100, "cpu")]
    positions = [
        next(index for index, name in enumerate(order) if name.startswith(f"training.{part}"))
        for part in (
            "autoencoder",
            "finetune_autoencoder",
            "train_text_encoders",
            "finetune_text_encoders",
            "train_recogniser",
            "transformer",
            "distil dev",
            "distil schnell",
            "lora",
            "export",
        )
    ]
    assert positions == sorted(positions)


def test_part_gets_its_share_of_minutes() -> None:
    transformer = next(
        command for command in commands(Path("r"), Path("o"), 100, "cuda", threads=2) if "transformer" in command[0]
    )
    assert transformer[transformer.index("--minutes") + 1] == str(100 * SHARES["transformer"])
    assert transformer[transformer.index("--device") + 1] == "cuda"
    assert transformer[transformer.index("--threads") + 1] == "2"


def test_only_transformers_are_compiled() -> None:
    compiled = [
        command[0] for command in commands(Path("r"), Path("o"), 100, "cpu", compiles=True) if "--compile" in command
    ]
    assert compiled == ["training.transformer", *["training.distil"] * 2, *["training.lora"] * 2]
    assert not any("--compile" in command for command in commands(Path("r"), Path("o"), 100, "cpu"))
