"""Makes [dev] and [schnell] of the trained transformer.

`python -m training.distil dev --minutes 120`: learns to give in one pass, told a guidance, what classifier-free
guidance gives in two. `python -m training.distil schnell --minutes 120`: learns to go in one step where the guided base
goes in several, on the schedule of four steps. Lessons and optimizers are those of `training.transformer`.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel

from training.attention import speed_up
from training.curriculum import STAGES, Stage
from training.flow import Place, Text, guided, noised, schedule, shift, training_times, velocity
from training.machine import Machine, add_arguments, chosen
from training.muon import Optimizers
from training.run import Average, Run
from training.teacher import Teacher
from training.transformer import build, is_inner, load

GUIDANCE_FROM, GUIDANCE_TO = 1.0, 7.0
SCHNELL_STEPS = 4
SCHNELL_GUIDANCE = 3.0
"""What [schnell] has built in."""
SUBSTEPS = 2
"""Steps of the base that one of [schnell] takes the place of: each costs two passes of the base."""


def dev_from(base: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """The base with a guidance embedding that says nothing yet."""
    model = build(guided=True)
    model.load_state_dict(base.state_dict(), strict=False)
    torch.nn.init.zeros_(model.time_text_embed.guidance_embedder.linear_2.weight)
    torch.nn.init.zeros_(model.time_text_embed.guidance_embedder.linear_2.bias)
    return model


def schnell_from(base: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """The base itself to begin with; all that [schnell] does otherwise it learns."""
    model = build()
    model.load_state_dict(base.state_dict())
    return model


@dataclass(frozen=True, slots=True)
class Given:
    """What a loss is taken on: pictures, what is said of them, and what nothing said would be."""

    clean: torch.Tensor
    """(batch, tokens, 64)."""
    words: Text
    empty: Text
    place: Place


def dev_loss(student: FluxTransformer2DModel, base: FluxTransformer2DModel, given: Given) -> torch.Tensor:
    """Against two passes of the base, at a guidance drawn for each picture."""
    clean = given.clean
    scale = GUIDANCE_FROM + (GUIDANCE_TO - GUIDANCE_FROM) * torch.rand(len(clean), device=clean.device)
    times = training_times(len(clean), shift(given.place.tokens)).to(clean.device)
    latents = noised(clean, torch.randn_like(clean), times)
    with torch.no_grad():
        wanted = guided(base, latents, times, given.words, given.empty, given.place, scale)
    return (velocity(student, latents, times, given.words, given.place, scale) - wanted).square().mean()


def schnell_loss(student: FluxTransformer2DModel, base: FluxTransformer2DModel, given: Given) -> torch.Tensor:
    """Against where the guided base stands at the end of one of the four stretches, from a place where it begins."""
    clean = given.clean
    marks = schedule(SCHNELL_STEPS, 1.0).to(clean.device)
    stretch = torch.randint(SCHNELL_STEPS, (len(clean),), device=clean.device)
    begin, end = marks[stretch], marks[stretch + 1]
    start = noised(clean, torch.randn_like(clean), begin)
    scale = torch.full((len(clean),), SCHNELL_GUIDANCE, device=clean.device)
    latents = start
    with torch.no_grad():
        for k in range(SUBSTEPS):
            now, then = (begin + (end - begin) * part / SUBSTEPS for part in (k, k + 1))
            way = guided(base, latents, now, given.words, given.empty, given.place, scale)
            latents = latents + (then - now)[:, None, None] * way
    wanted = (latents - start) / (end - begin)[:, None, None]
    return (velocity(student, start, begin, given.words, given.place) - wanted).square().mean()


LOSSES = {"dev": dev_loss, "schnell": schnell_loss}


def train(
    kind: str, runs: Path, minutes: float, seed: int, stages: tuple[Stage, ...], peak: float, machine: Machine
) -> None:
    torch.manual_seed(seed)
    base = load(runs / "transformer").to(machine.device)
    student = (dev_from(base) if kind == "dev" else schnell_from(base)).to(machine.device)
    for model in (base, student):
        speed_up(model, machine)
    optimizers, average = Optimizers(student, peak, is_inner), Average(student, 0.995)
    run = Run(runs / kind, minutes, {"model": student, "optimizers": optimizers, "average": average}, machine.clock)
    rng = np.random.default_rng([seed, run.step, 1])
    torch.manual_seed(seed + run.step)
    teacher = Teacher(runs, rng, stages, machine)
    for _ in run.steps():
        # All sizes from the beginning: nothing new is learned about drawing.
        batch = teacher.batch(1.0)
        words, empty = teacher.read(batch.prompts(rng)), teacher.read([""] * len(batch.scenes))
        loss = LOSSES[kind](student, base, Given(batch.latents, words, empty, batch.place))
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
    parser.add_argument("--stages", type=int, default=len(STAGES), help="as the base was trained")
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
        chosen(arguments),
    )


if __name__ == "__main__":
    main()
