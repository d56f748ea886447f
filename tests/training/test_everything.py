"""The one command: its parts in an order in which each finds what it needs."""

from pathlib import Path

import pytest

from training.__main__ import SHARES, commands


def test_the_shares_of_the_time_add_up() -> None:
    assert sum(SHARES.values()) == pytest.approx(1)


def test_each_part_comes_after_what_it_stands_on() -> None:
    order = [" ".join(command[:2]) for command in commands(Path("r"), Path("o"), 100, "cpu")]
    places = [
        next(k for k, name in enumerate(order) if name.startswith(f"training.{part}"))
        for part in (
            "autoencoder",
            "refine",
            "text",
            "triggers",
            "train_recogniser",
            "transformer",
            "distil dev",
            "distil schnell",
            "lora",
            "export",
        )
    ]
    assert places == sorted(places)


def test_each_part_gets_its_share_of_the_minutes() -> None:
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
