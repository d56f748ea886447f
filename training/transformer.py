"""Trains the transformer to draw what prompts ask for: rectified flow on latents, larger pictures as it gets better.

`python -m training.transformer --minutes 1200`. It has no guidance embedding yet: `training.distil` makes [dev] and
[schnell] of it.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel

from training.curriculum import STAGES, Stage
from training.encoders import WIDTH
from training.flow import noised, shift, training_times, velocity
from training.machine import Machine, add_arguments, chosen
from training.run import Average, Run
from training.teacher import Teacher

CONFIG = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 6,
    "attention_head_dim": 64,
    "num_attention_heads": 3,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": WIDTH,
    "axes_dims_rope": (8, 28, 28),
}
WITHOUT_TEXT = 0.1
"""Share of pictures learned with an empty prompt, so that guidance has something to lead away from."""


def build(*, guided: bool = False) -> FluxTransformer2DModel:
    """Fresh weights; what modulates, and the last layer, begin at nothing, so every block begins as the identity."""
    model = FluxTransformer2DModel(**CONFIG, guidance_embeds=guided)
    for name, parameter in model.named_parameters():
        if name.startswith("proj_out") or ".linear." in name:
            torch.nn.init.zeros_(parameter)
    return model


class Optimizers:
    """Muon for the matrices within the blocks, AdamW for all else; one learning rate leads both."""

    def __init__(self, model: FluxTransformer2DModel, rate: float) -> None:
        inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "blocks" in n and ".linear." not in n]
        chosen = {id(p) for p in inner}
        rest = [p for p in model.parameters() if id(p) not in chosen]
        self.muon = torch.optim.Muon(inner, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step(self, rate: float) -> None:
        both: tuple[torch.optim.Optimizer, ...] = (self.muon, self.adamw)
        for optimizer in both:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, object]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, object]]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


def train(runs: Path, minutes: float, seed: int, stages: tuple[Stage, ...], peak: float, machine: Machine) -> None:
    torch.manual_seed(seed)
    folder = runs / "transformer"
    model = build().to(machine.device)
    optimizers, average = Optimizers(model, peak), Average(model, 0.998)
    run = Run(folder, minutes, {"model": model, "optimizers": optimizers, "average": average}, machine.clock)
    rng = np.random.default_rng([seed, run.step])
    torch.manual_seed(seed + run.step)
    teacher = Teacher(runs, rng, stages, machine)
    for _ in run.steps():
        given = teacher.batch(run.progress)
        prompts = ["" if rng.random() < WITHOUT_TEXT else said for said in given.prompts(rng)]
        times = training_times(len(prompts), shift(given.latents.shape[1])).to(machine.device)
        noise = torch.randn_like(given.latents)
        guess = velocity(model, noised(given.latents, noise, times), times, teacher.read(prompts), given.grid)
        loss = (guess - (noise - given.latents)).square().mean()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(run.rate(peak))
        average.update()
        run.log(loss=loss.item())


def load(run: Path, *, guided: bool = False) -> FluxTransformer2DModel:
    """The averaged weights of a run's last checkpoint, on the CPU."""
    model = build(guided=guided)
    model.load_state_dict(
        torch.load(run / "run.pt", weights_only=True, map_location="cpu")["parts"]["average"]["shadow"]
    )
    return model.requires_grad_(False).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--minutes", type=float, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--stages", type=int, default=len(STAGES), help="only the first stages, over the whole time")
    add_arguments(parser)
    arguments = parser.parse_args()
    kept = STAGES[: arguments.stages]
    stages = tuple(Stage(stage.until / kept[-1].until, stage.lessons) for stage in kept)
    train(arguments.runs, arguments.minutes, arguments.seed, stages, arguments.rate, chosen(arguments))


if __name__ == "__main__":
    main()
