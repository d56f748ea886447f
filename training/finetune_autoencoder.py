"""Fine-tunes the autoencoder to encode a drawing the same on any canvas: `python -m training.finetune_autoencoder`.

Also makes ink colours more distinct. The latents of the square alone do not change, so models trained on them stay
valid. Replaces the weights that `training.autoencoder` stored.
"""

import argparse
import math
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training.autoencoder import (
    MIN_INK_STRENGTH,
    VAE_STRIDE_PX,
    decode_noisy,
    image_loss,
    ink_mask,
    ink_strength,
    uses_muon,
)
from training.curriculum import JITTER
from training.drawings.render import render
from training.drawings.sampling import Mixture, sample_scene
from training.drawings.strokes import Rng
from training.group_norms import use_weighted_norms, weighted_statistics
from training.hardware import Machine, add_arguments, machine_from_arguments
from training.image_tensors import to_tensor
from training.muon_optimizer import Optimizers
from training.square_latents import PADDED_PX, crop_square, pixel_weights, square_moments
from training.training_run import Average, Run

HUE_WEIGHT, LATENT_WEIGHT = 3.0, 1.0
SMALLEST_PX, LARGEST_PX = 300, 1280
"""Sides of the square canvases trained on."""
NO_MARGIN_SHARE = 0.25
"""Share of images without a margin."""
JITTERS = (JITTER, 1.0)


def draw_example(rng: Rng) -> torch.Tensor:
    """Returns a drawing with its margin, `[3, PADDED_PX, PADDED_PX]`."""
    scene = sample_scene(rng, Mixture(word=0.35, two_things=0.35))
    return to_tensor(render(scene, (PADDED_PX, PADDED_PX), rng, float(rng.choice(JITTERS))))


def hue_loss(
    reconstruction: torch.Tensor, images: torch.Tensor, ink: torch.Tensor, background: torch.Tensor
) -> torch.Tensor:
    """Returns the error of the ink's mean colour in each neighbourhood that has ink.

    Noise within a line averages out over a neighbourhood; a wrong colour does not.
    """
    strength = ink_strength(images, ink, background)
    local = torch.nn.functional.avg_pool2d(
        torch.cat([strength * (reconstruction - images), strength], 1), VAE_STRIDE_PX
    )
    error, strength_mean = local[:, :3], local[:, 3]
    has_ink = strength_mean > MIN_INK_STRENGTH
    errors = error.abs().mean(1) / strength_mean.clamp(min=1e-6) * has_ink
    mean: torch.Tensor = errors.sum() / has_ink.sum().clamp(min=1)
    return mean


def compute_loss(
    model: AutoencoderKL, images: torch.Tensor, targets: torch.Tensor, canvas_px2: float | None
) -> tuple[torch.Tensor, dict[str, float]]:
    """Returns the encoder's distance from `targets` plus the decoder's error on `targets`, and values to log.

    The images' margin stands for a canvas of `canvas_px2` pixels; None means that they have no margin.
    """
    with weighted_statistics(model, None if canvas_px2 is None else pixel_weights(canvas_px2).to(images.device)):
        moments = model.encode(images).latent_dist.parameters.float()
        reconstruction = decode_noisy(model, targets.chunk(2, dim=1)[0])
    latent_error = (moments - targets).square().mean()
    ink, background = ink_mask(images)
    form_error, hue_error = image_loss(reconstruction - images, ink), hue_loss(reconstruction, images, ink, background)
    values = {"form": form_error.item(), "hue": hue_error.item(), "code": latent_error.item()}
    return form_error + HUE_WEIGHT * hue_error + LATENT_WEIGHT * latent_error, values


def make_batch(
    teacher: AutoencoderKL, drawings: torch.Tensor, rng: Rng
) -> tuple[torch.Tensor, torch.Tensor, float | None]:
    """Returns images, their target moments, and the number of pixels of their canvas."""
    targets = square_moments(teacher, drawings)
    without_margin = rng.random() < NO_MARGIN_SHARE
    images = crop_square(drawings) if without_margin else drawings
    side_px = math.exp(rng.uniform(math.log(SMALLEST_PX), math.log(LARGEST_PX)))
    return (
        images.contiguous(memory_format=torch.channels_last),
        crop_square(targets) if without_margin else targets,
        None if without_margin else side_px**2,
    )


def train(runs: Path, minutes: float, seed: int, peak: float, machine: Machine) -> None:
    torch.manual_seed(seed)
    vae_folder = runs / "autoencoder" / "vae"
    model: AutoencoderKL = AutoencoderKL.from_pretrained(vae_folder)
    model.to(machine.device, memory_format=torch.channels_last)
    use_weighted_norms(model)
    teacher = deepcopy(model).requires_grad_(False).eval()
    optimizers, average = Optimizers(model, peak, uses_muon), Average(model, 0.99)
    run = Run(runs / "refine", minutes, {"model": model, "optimizers": optimizers, "average": average}, machine.clock)
    rng, drawings = np.random.default_rng([seed, run.step]), machine.stream(draw_example, seed + run.step)
    for _ in run.steps():
        batch = torch.stack([next(drawings) for _ in range(machine.batch_factor)]).to(machine.device)
        images, targets, canvas_px2 = make_batch(teacher, batch, rng)
        with machine.autocast():
            loss, values = compute_loss(model, images, targets, canvas_px2)
        torch.autograd.backward(loss)
        for part in (model.encoder, model.decoder):
            torch.nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimizers.step(run.rate(peak))
        average.update()
        run.log(**values)
    model.load_state_dict(average.shadow)
    model.cpu().save_pretrained(vae_folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1e-3)
    add_arguments(parser)
    arguments = parser.parse_args()
    train(arguments.runs, arguments.minutes, arguments.seed, arguments.rate, machine_from_arguments(arguments))


if __name__ == "__main__":
    main()
