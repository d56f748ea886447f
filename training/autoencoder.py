"""Trains the autoencoder: pictures to 16 channels at a sixteenth of the side, and back.

`python -m training.autoencoder --minutes 25`. Knows nothing of prompts.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from training.drawings.ink import rendered
from training.drawings.sampling import Mixture, sampled
from training.drawings.strokes import Rng
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
POOL = 256
"""Pictures kept at hand; crops are cheap, drawing is not."""


def build() -> AutoencoderKL:
    """The autoencoder with fresh weights: every residual branch begins near nothing, so it starts as a linear one."""
    model = AutoencoderKL(**CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("conv2.weight"):
                parameter.mul_(0.1)
    return model


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """(3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def to_picture(tensor: torch.Tensor) -> Image.Image:
    array = ((tensor.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(array.permute(1, 2, 0).numpy())


class Pool:
    """Pictures of several sizes, a few redrawn at every step."""

    def __init__(self, rng: Rng) -> None:
        self.rng = rng
        self.pictures = [self._drawn() for _ in range(POOL)]

    def _drawn(self) -> torch.Tensor:
        side = int(self.rng.choice([224, 256, 320, 512], p=[0.3, 0.4, 0.15, 0.15]))
        return to_tensor(rendered(sampled(self.rng, Mixture(word=0.4)), (side, side), self.rng))

    def crops(self, count: int, side: int) -> torch.Tensor:
        """(count, 3, side, side), turned at random, mostly from where there is ink."""
        self.pictures[int(self.rng.integers(POOL))] = self._drawn()
        return torch.stack([self._crop(side) for _ in range(count)])

    def _crop(self, side: int) -> torch.Tensor:
        picture = self.pictures[int(self.rng.integers(POOL))]
        best = None
        for _ in range(2):
            top, left = (int(self.rng.integers(length - side + 1)) for length in picture.shape[1:])
            crop = picture[:, top : top + side, left : left + side]
            if best is None or crop.std() > best.std():
                best = crop
        assert best is not None
        return self._recoloured(best.flip(2) if self.rng.random() < 0.3 else best)

    def _recoloured(self, crop: torch.Tensor) -> torch.Tensor:
        """As drawn, or with any ink on any paper, or bare fields of colour.

        From eight inks on three papers alone it learns forms within minutes, and colour hardly at all.
        """
        kind = self.rng.random()
        if kind < 0.45:
            return crop
        if kind < 0.85:
            paper, ink = (torch.from_numpy(self.rng.uniform(-1, 1, (3, 1, 1))).float() for _ in range(2))
            touched = (crop - crop.flatten(1).median(dim=1).values[:, None, None]).abs().mean(dim=0)
            touched = touched / touched.max().clamp(min=0.1)
            return paper + (ink - paper) * touched
        cells = torch.from_numpy(self.rng.uniform(-1, 1, (1, 3, *self.rng.integers(1, 9, 2)))).float()
        return torch.nn.functional.interpolate(cells, size=crop.shape[1:], mode="bilinear")[0]


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


def train(folder: Path, minutes: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = build().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    average = Average(model, 0.99)
    run = Run(folder, minutes, {"model": model, "optimizer": optimizer, "average": average})
    rng = np.random.default_rng([seed, run.step])
    pool = Pool(rng)
    for step in run.steps():
        # Whole small pictures now and then, since the group norms see how much paper there is.
        pictures = pool.crops(2, 224) if step % 6 == 5 else pool.crops(6, 128)
        for group in optimizer.param_groups:
            group["lr"] = run.rate(2.5e-3)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        # Convolutions in bfloat16 are fast on a CPU with matrix units, and only in this memory format.
        with torch.autocast("cpu", torch.bfloat16):
            loss, values = loss_of(model, pictures, KL_WEIGHT * min(1.0, step / 500))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update()
        run.log(**values)
        if step % 100 == 99:
            sample(average, folder / "sample.png", seed=1)
    finish(folder, seed)


def averaged(folder: Path) -> AutoencoderKL:
    """The averaged weights of a run's last checkpoint."""
    model = AutoencoderKL(**CONFIG)
    model.load_state_dict(torch.load(folder / "run.pt", weights_only=True)["parts"]["average"]["shadow"])
    return model.eval()


@torch.no_grad()
def finish(folder: Path, seed: int) -> None:
    """Measures how far the latents spread, writes it into the configuration, and stores the autoencoder."""
    model, rng = averaged(folder), np.random.default_rng([seed, 1])
    pictures = torch.stack([to_tensor(rendered(sampled(rng, Mixture()), (256, 256), rng)) for _ in range(64)])
    latents = torch.cat([model.encode(some).latent_dist.mean for some in pictures.chunk(8)])
    shift, spread = latents.mean().item(), latents.std().item()
    model.register_to_config(shift_factor=shift, scaling_factor=1 / spread)
    model.save_pretrained(folder / "vae")
    back = torch.cat([model.decode(some).sample for some in latents.chunk(8)])
    psnr = -10 * torch.log10((back.clamp(-1, 1) - pictures).square().mean() / 4)
    print(f"whole pictures of 256 by 256: {psnr:.2f} dB; latents of mean {shift:.3f} and spread {spread:.3f}")


@torch.no_grad()
def sample(average: Average, out: Path, seed: int) -> None:
    """Pictures above, what comes back below."""
    model = AutoencoderKL(**CONFIG)
    model.load_state_dict(average.shadow)
    rng = np.random.default_rng(seed)
    pictures = torch.stack([to_tensor(rendered(sampled(rng, Mixture()), (256, 256), rng)) for _ in range(5)])
    back = model.decode(model.encode(pictures).latent_dist.mean).sample
    to_picture(torch.cat([torch.cat(list(pictures), 2), torch.cat(list(back), 2)], 1)).save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/autoencoder"))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finish", action="store_true", help="only store the autoencoder of the last checkpoint")
    arguments = parser.parse_args()
    if arguments.finish:
        finish(arguments.folder, arguments.seed)
        return
    train(arguments.folder, arguments.minutes, arguments.seed)


if __name__ == "__main__":
    main()
