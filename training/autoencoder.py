"""Trains the autoencoder: pictures to 16 channels at a sixteenth of the side, and back.

`python -m training.autoencoder --minutes 25`. Knows nothing of prompts.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training.crops import Pool
from training.drawings.ink import rendered
from training.drawings.sampling import Mixture, sampled
from training.machine import Machine, add_arguments, chosen
from training.muon import Optimizers
from training.norms import WideNorm
from training.pixels import to_picture, to_tensor
from training.run import Average, Run

CONFIG = {
    "down_block_types": ["DownEncoderBlock2D"] * 5,
    "up_block_types": ["UpDecoderBlock2D"] * 5,
    "block_out_channels": [16, 16, 32, 96, 192],
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 4,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": False,
    "act_fn": "silu",
}
FACTOR = 16
KL_WEIGHT, COLOUR_WEIGHT, ORDER_WEIGHT = 1e-4, 0.03, 0.03
PEAK_RATE = 2e-3
CROPS, CROP_PX = 4, 128
WHOLES, WHOLE_PX = 1, 256
"""Every third step takes a larger piece, since the group norms see how much paper there is."""
NOISE = 0.3
"""Spread of the noise on what the decoder gets: it learns to draw whole lines from what a transformer gives it."""
SOME_INK = 2e-3
"""Mean strength from which a neighbourhood counts as having ink."""
PAPER_TONE, PAPER_GAIN, INK_GAIN = 0.85, 9.0, 3.0
"""How colours stand in the latents: farther apart than all else, since what varies most is learned first."""


def build() -> AutoencoderKL:
    """The autoencoder with fresh weights: every residual branch begins near nothing, so it starts as nearly linear."""
    model = AutoencoderKL(**CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("conv2.weight"):
                parameter.mul_(0.1)
    widen_norms(model)
    return model


def widen_norms(model: AutoencoderKL) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm) and module.num_channels <= 32:
            module.__class__ = WideNorm


def touched(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where ink lies, (batch, 1, height, width), 0 or 1, and the paper's colour, (batch, 3, 1, 1)."""
    paper = pictures.flatten(2).median(dim=2).values[..., None, None]
    return ((pictures - paper).abs().amax(dim=1, keepdim=True) > 0.15).float(), paper


def strength_of(pictures: torch.Tensor, ink: torch.Tensor, paper: torch.Tensor) -> torch.Tensor:
    """How far ink stands out, (batch, 1, height, width): most in the middle of a line, least at its edge."""
    return ink * (pictures - paper).square().mean(dim=1, keepdim=True)


def colours(pictures: torch.Tensor, ink: torch.Tensor, paper: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the first six channels of the latents should say, and where: (batch, 6, h, w) and (batch, 6, h, w).

    Three say the colour of the ink wherever there is some near, three that of the paper everywhere.
    """
    strength = strength_of(pictures, ink, paper)
    near = torch.nn.functional.avg_pool2d(torch.cat([strength * pictures, strength], 1), FACTOR)
    near = torch.nn.functional.avg_pool2d(near, 3, stride=1, padding=1, count_include_pad=False)
    ink_colour = INK_GAIN * near[:, :3] / near[:, 3:].clamp(min=1e-6)
    paper_colour = (PAPER_GAIN * (paper - PAPER_TONE)).expand_as(ink_colour)
    counts = (near[:, 3:] > SOME_INK).float().expand_as(ink_colour)
    return torch.cat([ink_colour, paper_colour], 1), torch.cat([counts, torch.ones_like(counts)], 1)


def decoded(model: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """(batch, 3, height, width) in float32, of latents with some noise, as a transformer's are."""
    noise = NOISE * torch.rand(len(latents), 1, 1, 1, device=latents.device)
    back: torch.Tensor = model.decode(latents + noise * torch.randn_like(latents)).sample
    return back.float()


def loss_of(model: AutoencoderKL, pictures: torch.Tensor, kl_weight: float) -> tuple[torch.Tensor, dict[str, float]]:
    """The pictures' loss, and what keeps the latents in order: colours in channels of their own, unit spread, KL."""
    posterior = model.encode(pictures).latent_dist
    latents = posterior.sample()
    back = decoded(model, latents)
    ink, paper = touched(pictures)
    difference = back - pictures
    picture_loss = loss_of_pictures(difference, ink)
    mean = posterior.mean.float()
    said, where = colours(pictures, ink, paper)
    colour_loss = (where * (mean[:, :6] - said).square()).sum() / where.sum()
    spread = mean[:, 6:].transpose(0, 1).flatten(1)
    order = spread.mean(1).square().mean() + (spread.std(1) - 1).square().mean()
    kl = 0.5 * (mean.square() + posterior.var - 1 - posterior.logvar).mean()
    loss = picture_loss + COLOUR_WEIGHT * colour_loss + ORDER_WEIGHT * order + kl_weight * kl
    psnr = -10 * torch.log10(difference.detach().square().mean() / 4)
    values = {"loss": picture_loss, "colour": colour_loss, "order": order, "kl": kl, "psnr": psnr}
    return loss, {name: value.item() for name, value in values.items()}


def loss_of_pictures(difference: torch.Tensor, ink: torch.Tensor) -> torch.Tensor:
    """Of (batch, 3, height, width) in [-2, 2], above all where ink lies.

    Form is learned long before colour and paper: both get a word of their own.
    """
    weight = 1 + 3 * torch.nn.functional.max_pool2d(ink, 5, stride=1, padding=2)
    colour = difference - difference.mean(dim=1, keepdim=True)
    tone = torch.nn.functional.avg_pool2d(difference, 16).abs().mean()
    return (weight * (difference.abs() + 2 * difference.square() + 5 * colour.abs())).mean() + tone


def is_inner(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether Muon leads this weight."""
    return parameter.ndim == 4 and "conv_in" not in name and "conv_out" not in name


def batch(pool: Pool, step: int, machine: Machine) -> torch.Tensor:
    """What is learned at this step: crops, or now and then larger pieces."""
    large = step % 3 == 2
    count = (WHOLES if large else CROPS) * machine.batch_factor
    return pool.crops(count, WHOLE_PX if large else CROP_PX).contiguous(memory_format=torch.channels_last)


def train(folder: Path, minutes: float, seed: int, peak: float, machine: Machine) -> None:
    torch.manual_seed(seed)
    model = build().to(machine.device, memory_format=torch.channels_last)
    optimizers = Optimizers(model, peak, is_inner)
    average = Average(model, 0.99)
    run = Run(folder, minutes, {"model": model, "optimizers": optimizers, "average": average}, machine.clock)
    pool = Pool(machine, seed + run.step)
    for step in run.steps():
        pictures = batch(pool, step, machine)
        with machine.autocast():
            loss, values = loss_of(model, pictures, KL_WEIGHT)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(run.rate(peak))
        average.update()
        run.log(**values)
        if step % 100 == 99:
            sample(folder, average)
    finish(folder, seed)


def averaged(average: Average) -> AutoencoderKL:
    """The averaged weights, on the CPU."""
    model = AutoencoderKL(**CONFIG)
    model.load_state_dict(average.shadow)
    return model.eval()


def examples(seed: int, count: int) -> torch.Tensor:
    """Whole drawings of 256 by 256 that training never saw: (count, 3, 256, 256)."""
    rng = np.random.default_rng([seed, 2])
    return torch.stack([to_tensor(rendered(sampled(rng, Mixture()), (256, 256), rng)) for _ in range(count)])


@torch.no_grad()
def sample(folder: Path, average: Average) -> None:
    """Drawings above, what comes back below."""
    model, pictures = averaged(average), examples(seed=1, count=8)
    back = model.decode(model.encode(pictures).latent_dist.mean).sample
    to_picture(torch.cat([torch.cat(list(pictures), 2), torch.cat(list(back), 2)], 1)).save(folder / "sample.png")


@torch.no_grad()
def finish(folder: Path, seed: int) -> None:
    """Measures how far the latents spread, writes it into the configuration, and stores the autoencoder."""
    average = Average(AutoencoderKL(**CONFIG), 0.99)
    state = torch.load(folder / "run.pt", weights_only=True, map_location="cpu")
    average.load_state_dict(state["parts"]["average"])
    model, pictures = averaged(average), examples(seed, 64)
    latents = torch.cat([model.encode(some).latent_dist.mean for some in pictures.chunk(8)])
    shift, spread = latents.mean().item(), latents.std().item()
    model.register_to_config(shift_factor=shift, scaling_factor=1 / spread)
    model.save_pretrained(folder / "vae")
    back = torch.cat([model.decode(some).sample for some in latents.chunk(8)])
    psnr = -10 * torch.log10((back.clamp(-1, 1) - pictures).square().mean() / 4)
    print(f"whole pictures of 256 by 256: {psnr:.2f} dB; latents of mean {shift:.3f} and spread {spread:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/autoencoder"))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finish", action="store_true", help="only store the autoencoder of the last checkpoint")
    parser.add_argument("--rate", type=float, default=PEAK_RATE)
    add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.finish:
        finish(arguments.folder, arguments.seed)
        return
    train(arguments.folder, arguments.minutes, arguments.seed, arguments.rate, chosen(arguments))


if __name__ == "__main__":
    main()
