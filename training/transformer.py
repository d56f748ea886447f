"""Trains the transformer to draw what prompts ask for: rectified flow on latents, larger pictures as it gets better.

`python -m training.transformer --minutes 1200`. It has no guidance embedding yet: `training.distil` makes [dev] and
[schnell] of it. Begins from nothing, or from what `training.import_weights` took up.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention

from training.attention import speed_up
from training.curriculum import STAGES, Stage
from training.encoders import WIDTH
from training.flow import flow_loss
from training.machine import Machine, add_arguments, chosen
from training.muon import Optimizers
from training.run import Average, Run
from training.teacher import Teacher

CONFIG: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 6,
    "attention_head_dim": 48,
    "num_attention_heads": 4,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": WIDTH,
    "axes_dims_rope": (8, 20, 20),
}
WITHOUT_TEXT = 0.1
"""Share of pictures learned with an empty prompt, so that guidance has something to lead away from."""


_RHYTHMS = 4
"""Of each axis the fastest rotations, with periods of 6 to 100 tokens: the slower ones hardly move in a picture."""
_PLACE_STRENGTH = 1.5


def build(*, guided: bool = False) -> FluxTransformer2DModel:
    """Fresh weights; what modulates, and the last layer, begin at nothing, so every block begins as the identity."""
    model = FluxTransformer2DModel(**CONFIG, guidance_embeds=guided)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("proj_out") or ".linear." in name:
                torch.nn.init.zeros_(parameter)
        for module in model.modules():
            if isinstance(module, FluxAttention):
                _feel_places(module)
    return model


def _feel_places(attention: FluxAttention) -> None:
    """Gives every head queries and keys that agree more at some places of the picture than at others.

    Places are known by rotation alone, against the text, which stands at the origin: from chance alone, where queries
    and keys are all content, a model is slow to find them.
    """
    keys = [attention.to_k] if attention.added_kv_proj_dim is None else [attention.to_k, attention.add_k_proj]
    for head in range(attention.heads):
        amplitudes = _places(torch.distributions.Dirichlet(torch.full((2 * _RHYTHMS,), 0.5)).sample().sqrt())
        for layer in (attention.to_q, *keys):
            phases = 2 * math.pi * torch.rand(len(amplitudes))
            pairs = amplitudes[:, None] * torch.stack([phases.cos(), phases.sin()], 1)
            layer.bias[head * attention.head_dim : (head + 1) * attention.head_dim] = pairs.flatten()


def _places(weights: torch.Tensor) -> torch.Tensor:
    """Amplitudes of a head's rotating pairs, from weights of the fast ones of both axes."""
    nothing, *axes = (width // 2 for width in CONFIG["axes_dims_rope"])
    parts = [torch.zeros(nothing)]
    for axis, fast in zip(axes, weights.chunk(2), strict=True):
        parts.append(torch.nn.functional.pad(fast, (0, axis - _RHYTHMS)))
    strength: float = _PLACE_STRENGTH * (CONFIG["attention_head_dim"] / 2) ** 0.5
    return strength * torch.cat(parts)


def is_inner(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether Muon leads this weight."""
    return parameter.ndim == 2 and "blocks" in name and ".linear." not in name


def start_file(runs: Path) -> Path:
    """Weights to begin from, if there are any."""
    return runs / "transformer" / "start.pt"


def train(runs: Path, minutes: float, seed: int, stages: tuple[Stage, ...], peak: float, machine: Machine) -> None:
    torch.manual_seed(seed)
    folder = runs / "transformer"
    model = build().to(machine.device)
    if start_file(runs).exists():
        model.load_state_dict(torch.load(start_file(runs), weights_only=True, map_location=machine.device))
    speed_up(model, machine)
    optimizers, average = Optimizers(model, peak, is_inner), Average(model, 0.998)
    run = Run(folder, minutes, {"model": model, "optimizers": optimizers, "average": average}, machine.clock)
    rng = np.random.default_rng([seed, run.step])
    torch.manual_seed(seed + run.step)
    teacher = Teacher(runs, rng, stages, machine)
    for _ in run.steps():
        given = teacher.batch(run.progress)
        prompts = ["" if rng.random() < WITHOUT_TEXT else said for said in given.prompts(rng)]
        loss = flow_loss(model, given.latents, teacher.read(prompts), given.place)
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
    parser.add_argument("--last", action="store_true", help="only the last stage, for a model that draws already")
    add_arguments(parser, compiles=True)
    arguments = parser.parse_args()
    kept = STAGES[-1:] if arguments.last else STAGES[: arguments.stages]
    stages = tuple(replace(stage, until=stage.until / kept[-1].until) for stage in kept)
    train(arguments.runs, arguments.minutes, arguments.seed, stages, arguments.rate, chosen(arguments))


if __name__ == "__main__":
    main()
