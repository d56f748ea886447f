"""Teaches the decoder alone to tell inks apart: `python -m training.decoder --minutes 15`.

What the encoder says stays as it is, so nothing that learned from its latents has to learn again. Replaces the decoder
that `training.autoencoder` stored. Knows nothing of prompts.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from training.autoencoder import (
    FACTOR,
    SOME_INK,
    batch,
    decoded,
    is_inner,
    loss_of_pictures,
    strength_of,
    touched,
    widen_norms,
)
from training.crops import Pool
from training.machine import Machine, add_arguments, chosen
from training.muon import Optimizers
from training.run import Average, Run

HUE_WEIGHT = 3.0


def hue_loss(back: torch.Tensor, pictures: torch.Tensor, ink: torch.Tensor, paper: torch.Tensor) -> torch.Tensor:
    """How far the ink's colour is from what it was, averaged over each neighbourhood that has some.

    What is astray here and there in a line evens out over a neighbourhood; another ink does not.
    """
    strength = strength_of(pictures, ink, paper)
    near = torch.nn.functional.avg_pool2d(torch.cat([strength * (back - pictures), strength], 1), FACTOR)
    astray, some = near[:, :3], near[:, 3]
    counts = some > SOME_INK
    mean: torch.Tensor = (astray.abs().mean(1) / some.clamp(min=1e-6) * counts).sum() / counts.sum().clamp(min=1)
    return mean


def loss_of(model: AutoencoderKL, pictures: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Of what the decoder makes of latents that are not its own to change."""
    with torch.no_grad():
        latents = model.encode(pictures).latent_dist.mean
    back = decoded(model, latents)
    ink, paper = touched(pictures)
    form, hue = loss_of_pictures(back - pictures, ink), hue_loss(back, pictures, ink, paper)
    return form + HUE_WEIGHT * hue, {"form": form.item(), "hue": hue.item()}


def train(runs: Path, minutes: float, seed: int, peak: float, machine: Machine) -> None:
    torch.manual_seed(seed)
    stored = runs / "autoencoder" / "vae"
    model: AutoencoderKL = AutoencoderKL.from_pretrained(stored)
    model.to(machine.device, memory_format=torch.channels_last).encoder.requires_grad_(False)
    widen_norms(model)
    optimizers, average = Optimizers(model.decoder, peak, is_inner), Average(model.decoder, 0.99)
    parts = {"decoder": model.decoder, "optimizers": optimizers, "average": average}
    run = Run(runs / "decoder", minutes, parts, machine.clock)
    pool = Pool(machine, seed + run.step)
    for step in run.steps():
        pictures = batch(pool, step, machine)
        with machine.autocast():
            loss, values = loss_of(model, pictures)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
        optimizers.step(run.rate(peak))
        average.update()
        run.log(**values)
    model.decoder.load_state_dict(average.shadow)
    model.cpu().save_pretrained(stored)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1e-3)
    add_arguments(parser)
    arguments = parser.parse_args()
    train(arguments.runs, arguments.minutes, arguments.seed, arguments.rate, chosen(arguments))


if __name__ == "__main__":
    main()
