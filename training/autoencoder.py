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
KL_WEIGHT = 3e-4
PEAK_RATE = 2.5e-3
CROPS, CROP_PX = 6, 128
WHOLES, WHOLE_PX = 2, 224
"""Now and then larger pieces, since the group norms see how much paper there is."""


def build() -> AutoencoderKL:
    """The autoencoder with fresh weights: every residual branch begins near nothing, so it starts as nearly linear."""
    model = AutoencoderKL(**CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("conv2.weight"):
                parameter.mul_(0.1)
    return model


def ink_weight(pictures: torch.Tensor) -> torch.Tensor:
    """(batch, 1, height, width): 4 on ink and close to it, 1 on bare paper, which is nearly everywhere."""
    paper = pictures.flatten(2).median(dim=2).values[..., None, None]
    ink = ((pictures - paper).abs().amax(dim=1, keepdim=True) > 0.15).float()
    return 1 + 3 * torch.nn.functional.max_pool2d(ink, 5, stride=1, padding=2)


def loss_of(model: AutoencoderKL, pictures: torch.Tensor, kl_weight: float) -> tuple[torch.Tensor, dict[str, float]]:
    posterior = model.encode(pictures).latent_dist
    back = model.decode(posterior.sample()).sample
    difference = back.float() - pictures
    weight = ink_weight(pictures)
    # Form is learned long before colour and paper: both get a word of their own.
    colour = difference - difference.mean(dim=1, keepdim=True)
    tone = torch.nn.functional.avg_pool2d(difference, 16)
    picture_loss = (weight * (difference.abs() + 2 * difference.square() + 3 * colour.abs())).mean() + tone.abs().mean()
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    psnr = -10 * torch.log10(difference.detach().square().mean() / 4)
    return picture_loss + kl_weight * kl, {"loss": picture_loss.item(), "kl": kl.item(), "psnr": psnr.item()}


def train(folder: Path, minutes: float, seed: int, machine: Machine) -> None:
    torch.manual_seed(seed)
    model = build().to(machine.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=1e-4)
    average = Average(model, 0.99)
    run = Run(folder, minutes, {"model": model, "optimizer": optimizer, "average": average}, machine.clock)
    pool = Pool(machine, seed + run.step)
    for step in run.steps():
        large = step % 6 == 5
        count = (WHOLES if large else CROPS) * machine.batch_factor
        pictures = pool.crops(count, WHOLE_PX if large else CROP_PX).contiguous(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = run.rate(PEAK_RATE)
        with machine.autocast():
            loss, values = loss_of(model, pictures, KL_WEIGHT * min(1.0, step / 500))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
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
    add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.finish:
        finish(arguments.folder, arguments.seed)
        return
    train(arguments.folder, arguments.minutes, arguments.seed, chosen(arguments))


if __name__ == "__main__":
    main()
