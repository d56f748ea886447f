"""Makes [dev] and [schnell] of the trained transformer.

`python -m training.distil dev --minutes 120`: learns to give in one pass, told a guidance, what classifier-free
guidance gives in two. `python -m training.distil schnell --minutes 120`: learns to go in one step where the guided base
goes in several, on the schedule of four steps. Both mostly learn on their own way from noise, against what the base
would do there. Pictures and optimizers are those of `training.transformer`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel

from training.attention import speed_up
from training.curriculum import STAGES, Stage
from training.flow import noised, velocity
from training.machine import Machine, add_arguments, chosen
from training.muon import Optimizers
from training.rollout import Journey, Stretch
from training.run import Average, Run
from training.students import COURSES, Course, Given, begun
from training.teacher import Teacher
from training.transformer import is_inner, load

FROM_PICTURES = 0.5
"""Share of batches learned once, from pictures with noise, as an image given to begin with is."""


def taken(
    student: FluxTransformer2DModel, base: FluxTransformer2DModel, course: Course, stretch: Stretch, given: Given
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of the student's next step, and its velocity there.

    Errors grow with the guidance: measured by it, high ones do not drown those that are mostly asked for.
    """
    with torch.no_grad():
        wanted = course.wanted(base, stretch, given)
    scale = given.scale if student.config.guidance_embeds else None
    step = velocity(student, stretch.latents, stretch.begin, given.words, given.place, scale)
    return ((step - wanted).square().mean(dim=(1, 2)) / given.scale.square()).mean(), step


def lessons(teacher: Teacher, course: Course, rng: np.random.Generator) -> Iterator[tuple[Journey, Given]]:
    """Without end: journeys from noise, or one stretch from a picture with some."""
    while True:
        # All sizes from the beginning: nothing new is learned about drawing.
        batch = teacher.batch(1.0)
        clean, count, tokens = batch.latents, len(batch.scenes), batch.place.tokens
        words, empty = teacher.read(batch.prompts(rng)), teacher.read([""] * count)
        given = Given(words, empty, batch.place, course.scales(count).to(clean.device))
        noise = torch.randn_like(clean)
        if rng.random() < FROM_PICTURES:
            marks = course.begun(count, tokens)
            yield Journey(noised(clean, noise, marks[:, 0].to(clean.device)), marks), given
        else:
            yield Journey(noise, course.marks(count, tokens)), given


def train(
    kind: str, runs: Path, minutes: float, seed: int, stages: tuple[Stage, ...], peak: float, machine: Machine
) -> None:
    torch.manual_seed(seed)
    base, course = load(runs / "transformer"), COURSES[kind]
    student = begun(kind, base, runs).to(machine.device)
    base.to(machine.device)
    for model in (base, student):
        speed_up(model, machine)
    optimizers, average = Optimizers(student, peak, is_inner), Average(student, 0.995)
    run = Run(runs / kind, minutes, {"model": student, "optimizers": optimizers, "average": average}, machine.clock)
    rng = np.random.default_rng([seed, run.step, 1])
    torch.manual_seed(seed + run.step)
    ahead = lessons(Teacher(runs, rng, stages, machine), course, rng)
    journey, given = next(ahead)
    for _ in run.steps():
        if journey.ended:
            journey, given = next(ahead)
        loss, step = taken(student, base, course, journey.stretch, given)
        journey.go_on(step)
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
