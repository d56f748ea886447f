"""Trains the autoencoder, which has 16 latent channels and a stride of 16: `python -m training.autoencoder`."""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training.crops import DrawingPool
from training.drawings.render import render
from training.drawings.sampling import Mixture, sample_scene
from training.group_norms import Float32GroupNorm
from training.hardware import Machine, add_arguments, machine_from_arguments
from training.image_tensors import to_image, to_tensor
from training.muon_optimizer import Optimizers
from training.training_run import Average, Run

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
VAE_STRIDE_PX = 16
"""Pixels a side of one latent."""
KL_WEIGHT, COLOUR_WEIGHT, ORDER_WEIGHT = 1e-4, 0.03, 0.03
PEAK_RATE = 2e-3
CROPS, CROP_PX = 4, 128
LARGE_CROPS, LARGE_CROP_PX = 1, 256
"""Every third step takes a larger crop, because the group norms depend on the amount of background."""
MAX_NOISE_STD = 0.3
"""Largest standard deviation of the noise on the decoder's input, which makes it robust to a transformer's latents."""
MIN_INK_STRENGTH = 2e-3
"""Regions with at least this mean ink strength count as having ink."""
BACKGROUND_TONE, BACKGROUND_GAIN, INK_GAIN = 0.85, 9.0, 3.0
"""Scale of the colours in the latents. These channels vary most, because the model learns large variations first."""


def build() -> AutoencoderKL:
    """Returns the autoencoder with fresh weights. Residual branches start near zero, so it starts nearly linear."""
    model = AutoencoderKL(**CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("conv2.weight"):
                parameter.mul_(0.1)
    use_float32_norms(model)
    return model


def use_float32_norms(model: AutoencoderKL) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm) and module.num_channels <= 32:
            module.__class__ = Float32GroupNorm


def ink_mask(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the ink mask, `[batch, 1, height, width]` of 0 or 1, and the background colour, `[batch, 3, 1, 1]`."""
    background = images.flatten(2).median(dim=2).values[..., None, None]
    return ((images - background).abs().amax(dim=1, keepdim=True) > 0.15).float(), background


def ink_strength(images: torch.Tensor, ink: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    """Returns the squared difference between ink and background, `[batch, 1, height, width]`."""
    return ink * (images - background).square().mean(dim=1, keepdim=True)


def colour_targets(
    images: torch.Tensor, ink: torch.Tensor, background: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns targets for the first six latent channels and their weights, both `[batch, 6, h, w]`.

    Three channels have the ink colour where there is ink nearby; three have the background colour everywhere.
    """
    strength = ink_strength(images, ink, background)
    local = torch.nn.functional.avg_pool2d(torch.cat([strength * images, strength], 1), VAE_STRIDE_PX)
    local = torch.nn.functional.avg_pool2d(local, 3, stride=1, padding=1, count_include_pad=False)
    ink_colour = INK_GAIN * local[:, :3] / local[:, 3:].clamp(min=1e-6)
    background_colour = (BACKGROUND_GAIN * (background - BACKGROUND_TONE)).expand_as(ink_colour)
    ink_weights = (local[:, 3:] > MIN_INK_STRENGTH).float().expand_as(ink_colour)
    return torch.cat([ink_colour, background_colour], 1), torch.cat([ink_weights, torch.ones_like(ink_weights)], 1)


def decode_noisy(model: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Decodes latents with random noise added. Returns `[batch, 3, height, width]` in float32."""
    noise = MAX_NOISE_STD * torch.rand(len(latents), 1, 1, 1, device=latents.device)
    reconstruction: torch.Tensor = model.decode(latents + noise * torch.randn_like(latents)).sample
    return reconstruction.float()


def compute_loss(model: AutoencoderKL, images: torch.Tensor, kl_weight: float) -> tuple[torch.Tensor, dict[str, float]]:
    """Returns the image loss plus regularisation (colour channels, unit standard deviation, KL), and values to log."""
    posterior = model.encode(images).latent_dist
    latents = posterior.sample()
    reconstruction = decode_noisy(model, latents)
    ink, background = ink_mask(images)
    difference = reconstruction - images
    reconstruction_loss = image_loss(difference, ink)
    mean = posterior.mean.float()
    targets, weights = colour_targets(images, ink, background)
    colour_loss = (weights * (mean[:, :6] - targets).square()).sum() / weights.sum()
    others = mean[:, 6:].transpose(0, 1).flatten(1)
    order = others.mean(1).square().mean() + (others.std(1) - 1).square().mean()
    kl = 0.5 * (mean.square() + posterior.var - 1 - posterior.logvar).mean()
    loss = reconstruction_loss + COLOUR_WEIGHT * colour_loss + ORDER_WEIGHT * order + kl_weight * kl
    psnr = -10 * torch.log10(difference.detach().square().mean() / 4)
    values = {"loss": reconstruction_loss, "colour": colour_loss, "order": order, "kl": kl, "psnr": psnr}
    return loss, {name: value.item() for name, value in values.items()}


def image_loss(difference: torch.Tensor, ink: torch.Tensor) -> torch.Tensor:
    """Loss of a difference `[batch, 3, height, width]` in [-2, 2], weighted towards ink.

    Shapes are learned long before colours, so colour and mean tone have separate terms.
    """
    weight = 1 + 3 * torch.nn.functional.max_pool2d(ink, 5, stride=1, padding=2)
    colour = difference - difference.mean(dim=1, keepdim=True)
    tone = torch.nn.functional.avg_pool2d(difference, 16).abs().mean()
    return (weight * (difference.abs() + 2 * difference.square() + 5 * colour.abs())).mean() + tone


def uses_muon(name: str, parameter: torch.nn.Parameter) -> bool:
    """Returns whether Muon optimises this weight; AdamW optimises the others."""
    return parameter.ndim == 4 and "conv_in" not in name and "conv_out" not in name


def batch(pool: DrawingPool, step: int, machine: Machine) -> torch.Tensor:
    """Returns the crops for this step."""
    large = step % 3 == 2
    count = (LARGE_CROPS if large else CROPS) * machine.batch_factor
    return pool.crops(count, LARGE_CROP_PX if large else CROP_PX).contiguous(memory_format=torch.channels_last)


def train(folder: Path, minutes: float, seed: int, peak: float, machine: Machine) -> None:
    torch.manual_seed(seed)
    model = build().to(machine.device, memory_format=torch.channels_last)
    optimizers = Optimizers(model, peak, uses_muon)
    average = Average(model, 0.99)
    run = Run(folder, minutes, {"model": model, "optimizers": optimizers, "average": average}, machine.clock)
    pool = DrawingPool(machine, seed + run.step)
    for step in run.steps():
        images = batch(pool, step, machine)
        with machine.autocast():
            loss, values = compute_loss(model, images, KL_WEIGHT)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(run.rate(peak))
        average.update()
        run.log(**values)
        if step % 100 == 99:
            sample(folder, average)
    finish(folder, seed)


def averaged_model(average: Average) -> AutoencoderKL:
    """Returns the averaged weights, on the CPU."""
    model = AutoencoderKL(**CONFIG)
    model.load_state_dict(average.shadow)
    return model.eval()


def examples(seed: int, count: int) -> torch.Tensor:
    """Returns `count` held-out drawings, `[count, 3, 256, 256]`."""
    rng = np.random.default_rng([seed, 2])
    return torch.stack([to_tensor(render(sample_scene(rng, Mixture()), (256, 256), rng)) for _ in range(count)])


@torch.no_grad()
def sample(folder: Path, average: Average) -> None:
    """Writes drawings and their reconstructions to `sample.png`."""
    model, images = averaged_model(average), examples(seed=1, count=8)
    reconstruction = model.decode(model.encode(images).latent_dist.mean).sample
    to_image(torch.cat([torch.cat(list(images), 2), torch.cat(list(reconstruction), 2)], 1)).save(folder / "sample.png")


@torch.no_grad()
def finish(folder: Path, seed: int) -> None:
    """Writes the latents' mean and standard deviation into the configuration, and saves the autoencoder."""
    average = Average(AutoencoderKL(**CONFIG), 0.99)
    state = torch.load(folder / "run.pt", weights_only=True, map_location="cpu")
    average.load_state_dict(state["parts"]["average"])
    model, images = averaged_model(average), examples(seed, 64)
    latents = torch.cat([model.encode(chunk).latent_dist.mean for chunk in images.chunk(8)])
    shift, std = latents.mean().item(), latents.std().item()
    model.register_to_config(shift_factor=shift, scaling_factor=1 / std)
    model.save_pretrained(folder / "vae")
    reconstruction = torch.cat([model.decode(chunk).sample for chunk in latents.chunk(8)])
    psnr = -10 * torch.log10((reconstruction.clamp(-1, 1) - images).square().mean() / 4)
    print(f"full images of 256 by 256: {psnr:.2f} dB; latents with mean {shift:.3f} and standard deviation {std:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/autoencoder"))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--finish", action="store_true", help="only save the autoencoder of the last checkpoint; do not train"
    )
    parser.add_argument("--rate", type=float, default=PEAK_RATE)
    add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.finish:
        finish(arguments.folder, arguments.seed)
        return
    train(arguments.folder, arguments.minutes, arguments.seed, arguments.rate, machine_from_arguments(arguments))


if __name__ == "__main__":
    main()
