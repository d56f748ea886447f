"""The decoder's own lessons: another ink costs more than unevenness in the same, and latents stay as they are."""

from itertools import count
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from training import autoencoder, crops, decoder
from training.autoencoder import touched
from training.decoder import hue_loss
from training.machine import CPU, Machine

GREEN, BLACK = (-0.7, 0.0, -0.6), (-0.8, -0.8, -0.8)


def lined(ink: tuple[float, float, float]) -> torch.Tensor:
    """(1, 3, 32, 32): paper with one line of ink, 4 pixels wide."""
    picture = torch.full((1, 3, 32, 32), 0.9)
    picture[..., 6:10] = torch.tensor(ink)[None, :, None, None]
    return picture


def hue(back: torch.Tensor, picture: torch.Tensor) -> float:
    return float(hue_loss(back, picture, *touched(picture)))


def test_the_right_ink_costs_nothing_and_another_much() -> None:
    assert hue(lined(GREEN), lined(GREEN)) == 0
    assert hue(lined(BLACK), lined(GREEN)) > 0.3


def test_unevenness_within_the_same_ink_costs_less_than_another_ink() -> None:
    torch.manual_seed(0)
    uneven = lined(GREEN) + 0.4 * torch.randn(1, 3, 32, 32)
    wrong = (lined(BLACK) - lined(GREEN)).abs().mean()
    assert (uneven - lined(GREEN)).abs().mean() > 2 * wrong
    assert hue(uneven, lined(GREEN)) < 0.5 * hue(lined(BLACK), lined(GREEN))


def test_paper_without_ink_costs_nothing() -> None:
    assert hue(torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.9)) == 0


def test_only_the_decoder_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    stored = tmp_path / "autoencoder" / "vae"
    AutoencoderKL(**autoencoder.CONFIG, shift_factor=0.1, scaling_factor=0.8).save_pretrained(stored)
    before = AutoencoderKL.from_pretrained(stored).state_dict()
    ticks = count()
    monkeypatch.setattr(Machine, "clock", lambda _: float(next(ticks)))
    monkeypatch.setattr(crops, "POOL", 2)
    decoder.train(tmp_path, 4 / 60, 0, 1e-3, CPU)
    model = AutoencoderKL.from_pretrained(stored)
    changed = {name.partition(".")[0] for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed == {"decoder"}
    assert (model.config.shift_factor, model.config.scaling_factor) == (0.1, 0.8)
