"""Trains the transformer, the base of [dev] and [schnell], on latents: `python -m training.transformer --minutes 1200`.

It has no guidance embedding. Training starts from fresh weights, or from those of `training.import_weights`.
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
from training.batches import BatchSource
from training.curriculum import STAGES, Stage
from training.flow_matching import flow_loss
from training.hardware import Machine, add_arguments, machine_from_arguments
from training.muon_optimizer import Optimizers
from training.text_encoders import WIDTH
from training.training_run import Average, Run

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
EMPTY_PROMPT_SHARE = 0.1
"""Share of images trained with an empty prompt, for classifier-free guidance."""


_FAST_ROTATIONS = 4
"""Number of rotations per axis that get biases: the fastest, with periods of 6 to 100 tokens. Slower ones hardly vary
within an image."""
_POSITION_STRENGTH = 1.5


def build(*, guided: bool = False) -> FluxTransformer2DModel:
    """Returns fresh weights. Modulation and the last layer start at zero, so every block starts as the identity."""
    model = FluxTransformer2DModel(**CONFIG, guidance_embeds=guided)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("proj_out") or ".linear." in name:
                torch.nn.init.zeros_(parameter)
        for module in model.modules():
            if isinstance(module, FluxAttention):
                _init_position_biases(module)
    return model


def _init_position_biases(attention: FluxAttention) -> None:
    """Initialises the biases of queries and keys so that each head prefers some relative positions.

    FLUX encodes positions only by rotating queries and keys. Fresh ones depend on content alone, and then the model is
    slow to learn positions.
    """
    keys = [attention.to_k] if attention.added_kv_proj_dim is None else [attention.to_k, attention.add_k_proj]
    for head in range(attention.heads):
        amplitudes = _rotation_amplitudes(
            torch.distributions.Dirichlet(torch.full((2 * _FAST_ROTATIONS,), 0.5)).sample().sqrt()
        )
        for layer in (attention.to_q, *keys):
            phases = 2 * math.pi * torch.rand(len(amplitudes))
            pairs = amplitudes[:, None] * torch.stack([phases.cos(), phases.sin()], 1)
            layer.bias[head * attention.head_dim : (head + 1) * attention.head_dim] = pairs.flatten()


def _rotation_amplitudes(weights: torch.Tensor) -> torch.Tensor:
    """Returns the amplitudes of a head's rotating pairs, from the weights of the fast rotations of both axes."""
    index_pairs, *axis_pairs = (width // 2 for width in CONFIG["axes_dims_rope"])
    parts = [torch.zeros(index_pairs)]
    for pairs, fast in zip(axis_pairs, weights.chunk(2), strict=True):
        parts.append(torch.nn.functional.pad(fast, (0, pairs - _FAST_ROTATIONS)))
    strength: float = _POSITION_STRENGTH * (CONFIG["attention_head_dim"] / 2) ** 0.5
    return strength * torch.cat(parts)


def uses_muon(name: str, parameter: torch.nn.Parameter) -> bool:
    """Returns whether Muon optimises this weight; AdamW optimises the others."""
    return parameter.ndim == 2 and "blocks" in name and ".linear." not in name


def start_file(runs: Path) -> Path:
    """Returns the path of the imported weights, which may not exist."""
    return runs / "transformer" / "start.pt"


def train(runs: Path, minutes: float, seed: int, stages: tuple[Stage, ...], peak: float, machine: Machine) -> None:
    torch.manual_seed(seed)
    folder = runs / "transformer"
    model = build().to(machine.device)
    if start_file(runs).exists():
        model.load_state_dict(torch.load(start_file(runs), weights_only=True, map_location=machine.device))
    speed_up(model, machine)
    optimizers, average = Optimizers(model, peak, uses_muon), Average(model, 0.998)
    run = Run(folder, minutes, {"model": model, "optimizers": optimizers, "average": average}, machine.clock)
    rng = np.random.default_rng([seed, run.step])
    torch.manual_seed(seed + run.step)
    source = BatchSource(runs, rng, stages, machine)
    for _ in run.steps():
        batch = source.batch(run.progress)
        prompts = ["" if rng.random() < EMPTY_PROMPT_SHARE else prompt for prompt in batch.prompts(rng)]
        loss = flow_loss(model, batch.latents, source.encode_prompts(prompts), batch.layout)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(run.rate(peak))
        average.update()
        run.log(loss=loss.item())


def load(run: Path, *, guided: bool = False) -> FluxTransformer2DModel:
    """Returns the averaged weights of a run's last checkpoint, on the CPU."""
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
    parser.add_argument("--stages", type=int, default=len(STAGES), help="use only the first stages, over the full time")
    parser.add_argument("--last", action="store_true", help="use only the last stage, for an already trained model")
    add_arguments(parser, compiles=True)
    arguments = parser.parse_args()
    selected = STAGES[-1:] if arguments.last else STAGES[: arguments.stages]
    stages = tuple(replace(stage, until=stage.until / selected[-1].until) for stage in selected)
    train(arguments.runs, arguments.minutes, arguments.seed, stages, arguments.rate, machine_from_arguments(arguments))


if __name__ == "__main__":
    main()
