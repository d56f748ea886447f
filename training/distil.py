"""Distils [dev] and [schnell] from the trained transformer: `python -m training.distil dev --minutes 120`.

[dev] learns to predict in one pass, conditioned on the guidance, what classifier-free guidance gives in two. [schnell]
learns to replace several steps of the guided base by one, so that it needs four steps. Both train mostly on their own
rollouts.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel

from training.attention import speed_up
from training.batches import BatchSource
from training.curriculum import STAGES, Stage
from training.flow_matching import add_noise, velocity
from training.hardware import Machine, add_arguments, machine_from_arguments
from training.muon_optimizer import Optimizers
from training.student_rollout import Interval, Rollout
from training.students import STUDENT_CONFIGS, Conditioning, StudentConfig, make_student
from training.training_run import Average, Run
from training.transformer import load, uses_muon

NOISED_IMAGE_SHARE = 0.5
"""Share of batches that start from noised images, as in image-to-image, and take one step."""


def step_loss(
    student: FluxTransformer2DModel,
    base: FluxTransformer2DModel,
    config: StudentConfig,
    interval: Interval,
    conditioning: Conditioning,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss of the student's next step, and its velocity there.

    Errors grow with the guidance scale, so they are divided by it: high scales would otherwise dominate.
    """
    with torch.no_grad():
        target = config.target(base, interval, conditioning)
    scale = conditioning.guidance if student.config.guidance_embeds else None
    step = velocity(student, interval.latents, interval.begin, conditioning.text, conditioning.layout, scale)
    return ((step - target).square().mean(dim=(1, 2)) / conditioning.guidance.square()).mean(), step


def rollouts(
    source: BatchSource, config: StudentConfig, rng: np.random.Generator
) -> Iterator[tuple[Rollout, Conditioning]]:
    """Yields rollouts from noise and single intervals from noised images, indefinitely."""
    while True:
        # Progress 1.0 selects the last stage, with canvases of all sizes; the student already knows the shapes.
        batch = source.batch(1.0)
        clean, count, tokens = batch.latents, len(batch.scenes), batch.layout.tokens
        text, empty = source.encode_prompts(batch.prompts(rng)), source.encode_prompts([""] * count)
        conditioning = Conditioning(text, empty, batch.layout, config.sample_guidance(count).to(clean.device))
        noise = torch.randn_like(clean)
        if rng.random() < NOISED_IMAGE_SHARE:
            timesteps = config.single_interval(count, tokens)
            yield Rollout(add_noise(clean, noise, timesteps[:, 0].to(clean.device)), timesteps), conditioning
        else:
            yield Rollout(noise, config.timesteps(count, tokens)), conditioning


def train(
    kind: str, runs: Path, minutes: float, seed: int, stages: tuple[Stage, ...], peak: float, machine: Machine
) -> None:
    torch.manual_seed(seed)
    base, config = load(runs / "transformer"), STUDENT_CONFIGS[kind]
    student = make_student(kind, base, runs).to(machine.device)
    base.to(machine.device)
    for model in (base, student):
        speed_up(model, machine)
    optimizers, average = Optimizers(student, peak, uses_muon), Average(student, 0.995)
    run = Run(runs / kind, minutes, {"model": student, "optimizers": optimizers, "average": average}, machine.clock)
    rng = np.random.default_rng([seed, run.step, 1])
    torch.manual_seed(seed + run.step)
    all_rollouts = rollouts(BatchSource(runs, rng, stages, machine), config, rng)
    rollout, conditioning = next(all_rollouts)
    for _ in run.steps():
        if rollout.finished:
            rollout, conditioning = next(all_rollouts)
        loss, step = step_loss(student, base, config, rollout.interval, conditioning)
        rollout.advance(step)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizers.step(run.rate(peak))
        average.update()
        run.log(loss=loss.item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["dev", "schnell"])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument(
        "--stages", type=int, default=len(STAGES), help="use only the first stages, as in the base's training"
    )
    add_arguments(parser, compiles=True)
    arguments = parser.parse_args()
    stages = STAGES[: arguments.stages]
    train(
        arguments.kind,
        arguments.runs,
        arguments.minutes,
        arguments.seed,
        stages,
        arguments.rate,
        machine_from_arguments(arguments),
    )


if __name__ == "__main__":
    main()
