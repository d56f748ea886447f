"""Teaches the autoencoder paper of every size, and inks: `python -m training.refine --minutes 30`.

Its norms see the whole picture, so without this a drawing has other latents on larger paper, and what comes back from
them has shadows and other inks. What it says of a drawing's square alone stays as it is, so nothing that learned from
its latents has to learn again. Replaces what `training.autoencoder` stored. Knows nothing of prompts.
"""

import argparse
import math
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training.autoencoder import FACTOR, SOME_INK, decoded, is_inner, loss_of_pictures, strength_of, touched
from training.curriculum import HAND
from training.drawings.ink import rendered
from training.drawings.sampling import Mixture, sampled
from training.drawings.strokes import Rng
from training.machine import Machine, add_arguments, chosen
from training.muon import Optimizers
from training.norms import counting, make_countable
from training.pixels import to_tensor
from training.run import Average, Run
from training.squares import WHOLE_PX, counts, inner, told

HUE_WEIGHT, CODE_WEIGHT = 3.0, 1.0
SMALLEST_PX, LARGEST_PX = 300, 1280
"""Sides of the square papers that are learned."""
BARE = 0.25
"""Share of pictures that are the square alone, to its edges."""
UNSTEADINESS = (HAND, 1.0)


def drawn(rng: Rng) -> torch.Tensor:
    """(3, WHOLE_PX, WHOLE_PX): a drawing with its margin."""
    scene = sampled(rng, Mixture(word=0.35, two_things=0.35))
    return to_tensor(rendered(scene, (WHOLE_PX, WHOLE_PX), rng, float(rng.choice(UNSTEADINESS))))


def hue_loss(back: torch.Tensor, pictures: torch.Tensor, ink: torch.Tensor, paper: torch.Tensor) -> torch.Tensor:
    """How far the ink's colour is from what it was, averaged over each neighbourhood that has some.

    What is astray here and there in a line evens out over a neighbourhood; another ink does not.
    """
    strength = strength_of(pictures, ink, paper)
    near = torch.nn.functional.avg_pool2d(torch.cat([strength * (back - pictures), strength], 1), FACTOR)
    astray, some = near[:, :3], near[:, 3]
    there = some > SOME_INK
    mean: torch.Tensor = (astray.abs().mean(1) / some.clamp(min=1e-6) * there).sum() / there.sum().clamp(min=1)
    return mean


def loss_of(
    model: AutoencoderKL, pictures: torch.Tensor, wanted: torch.Tensor, paper_px2: float | None
) -> tuple[torch.Tensor, dict[str, float]]:
    """How far the encoder's word is from `wanted`, and what the decoder makes of that from the picture.

    `pictures` have a margin that stands for paper of so many pixels, or none if that is None.
    """
    with counting(model, None if paper_px2 is None else counts(paper_px2).to(pictures.device)):
        said = model.encode(pictures).latent_dist.parameters.float()
        back = decoded(model, wanted.chunk(2, dim=1)[0])
    code = (said - wanted).square().mean()
    ink, paper = touched(pictures)
    form, hue = loss_of_pictures(back - pictures, ink), hue_loss(back, pictures, ink, paper)
    return form + HUE_WEIGHT * hue + CODE_WEIGHT * code, {"form": form.item(), "hue": hue.item(), "code": code.item()}


def lesson(teacher: AutoencoderKL, drawings: torch.Tensor, rng: Rng) -> tuple[torch.Tensor, torch.Tensor, float | None]:
    """Pictures, what is to be said of them, and the pixels of their paper."""
    wanted = told(teacher, drawings)
    bare = rng.random() < BARE
    pictures = inner(drawings) if bare else drawings
    side_px = math.exp(rng.uniform(math.log(SMALLEST_PX), math.log(LARGEST_PX)))
    return (
        pictures.contiguous(memory_format=torch.channels_last),
        inner(wanted) if bare else wanted,
        None if bare else side_px**2,
    )


def train(runs: Path, minutes: float, seed: int, peak: float, machine: Machine) -> None:
    torch.manual_seed(seed)
    stored = runs / "autoencoder" / "vae"
    model: AutoencoderKL = AutoencoderKL.from_pretrained(stored)
    model.to(machine.device, memory_format=torch.channels_last)
    make_countable(model)
    teacher = deepcopy(model).requires_grad_(False).eval()
    optimizers, average = Optimizers(model, peak, is_inner), Average(model, 0.99)
    run = Run(runs / "refine", minutes, {"model": model, "optimizers": optimizers, "average": average}, machine.clock)
    rng, drawings = np.random.default_rng([seed, run.step]), machine.endless(drawn, seed + run.step)
    for _ in run.steps():
        new = torch.stack([next(drawings) for _ in range(machine.batch_factor)]).to(machine.device)
        pictures, wanted, paper_px2 = lesson(teacher, new, rng)
        with machine.autocast():
            loss, values = loss_of(model, pictures, wanted, paper_px2)
        torch.autograd.backward(loss)
        for half in (model.encoder, model.decoder):
            torch.nn.utils.clip_grad_norm_(half.parameters(), 1.0)
        optimizers.step(run.rate(peak))
        average.update()
        run.log(**values)
    model.load_state_dict(average.shadow)
    model.cpu().save_pretrained(stored)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1e-3)
    add_arguments(parser)
    arguments = parser.parse_args()
    train(arguments.runs, arguments.minutes, arguments.seed, arguments.rate, chosen(arguments))


if __name__ == "__main__":
    main()
