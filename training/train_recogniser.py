"""Trains and validates the recogniser of the quality evaluation: `python -m training.train_recogniser --minutes 8`.

It must recognise at least 98 % of held-out drawings, and no more than chance when the prompts are shuffled.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from training.drawings.render import render
from training.drawings.sampling import Mixture, sample_scene
from training.drawings.scene import INKS, THINGS, Scene
from training.drawings.strokes import Rng
from training.evaluation.recogniser import LETTERS, SIDE, WEIGHTS, Recogniser, to_square
from training.evaluation.scores import scores
from training.hardware import Machine, add_arguments, machine_from_arguments
from training.precision import autocast
from training.training_run import Average, Run

MIXTURE = Mixture(two_things=0.25, word=0.4, labelled=0.05)
SIDES_PX = (128, 192, 256, 320)
FRAMES = (1.0, 0.8)
"""Side of the drawn square as a share of the image's. Large images are cropped with a margin around the square."""
POOL_SIZE = 4096


def draw_example(rng: Rng) -> tuple[torch.Tensor, Scene]:
    """Returns an image, `[3, SIDE, SIDE]`, and its scene."""
    scene = sample_scene(rng, MIXTURE)
    side = int(rng.choice(SIDES_PX))
    frame_px = side * float(rng.choice(FRAMES))
    return to_square(render(scene, (side, side), rng, frame_px=frame_px)), scene


def targets(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    """Returns things `[batch, things]`, inks `[batch, inks]`, and each word's letters, counted from 1."""
    things, inks = torch.zeros(len(scenes), len(THINGS)), torch.zeros(len(scenes), len(INKS))
    letters = []
    for row, scene in enumerate(scenes):
        word = ""
        for item in scene.items:
            inks[row, list(INKS).index(item.ink)] = 1
            if item.kind == "thing":
                things[row, list(THINGS).index(item.name)] = 1
            else:
                word = item.name
        letters.append([LETTERS.index(letter) + 1 for letter in word])
    return things, inks, letters


def degrade(images: torch.Tensor) -> torch.Tensor:
    """Adds some blur and noise, so that the recogniser tolerates generated images."""
    strength = torch.rand(len(images), 1, 1, 1, device=images.device)
    blurred = nn.functional.avg_pool2d(nn.functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return images + strength * (blurred - images) + 0.05 * float(torch.rand(1)) * torch.randn_like(images)


def compute_loss(model: Recogniser, images: torch.Tensor, scenes: list[Scene]) -> torch.Tensor:
    things, inks, letters = targets(scenes)
    with autocast(images.device.type):
        thing_logits, ink_logits, columns = model(images)
    thing_loss = nn.functional.binary_cross_entropy_with_logits(thing_logits.float(), things.to(images.device)) * 10
    ink_loss = nn.functional.binary_cross_entropy_with_logits(ink_logits.float(), inks.to(images.device)) * 2
    letter_loss = nn.functional.ctc_loss(
        columns.float().log_softmax(1).permute(2, 0, 1),
        torch.tensor([letter for word in letters for letter in word], dtype=torch.long),
        torch.full((len(scenes),), columns.shape[2]),
        torch.tensor([len(word) for word in letters]),
        zero_infinity=True,
    )
    return thing_loss + ink_loss + letter_loss


class DrawingPool:
    """Drawings kept in memory; some are replaced at every step."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.machine, self.rng = machine, np.random.default_rng([seed, 1])
        self._new = machine.stream(draw_example, seed)
        self.images = torch.empty(POOL_SIZE * machine.batch_factor, 3, SIDE, SIDE, dtype=torch.half)
        self.scenes: list[Scene] = []

    def batch(self, count: int, new: int) -> tuple[torch.Tensor, list[Scene]]:
        for _ in range(new):
            self._add(*next(self._new))
        indices = self.rng.integers(len(self.scenes), size=count)
        images = self.images[torch.from_numpy(indices)].to(self.machine.device, torch.float32)
        return images, [self.scenes[index] for index in indices]

    def _add(self, image: torch.Tensor, scene: Scene) -> None:
        if len(self.scenes) < len(self.images):
            self.scenes.append(scene)
            index = len(self.scenes) - 1
        else:
            index = int(self.rng.integers(len(self.images)))
            self.scenes[index] = scene
        self.images[index] = image.half()


def train(folder: Path, minutes: float, seed: int, out: Path, machine: Machine) -> None:
    torch.manual_seed(seed)
    model = Recogniser(list(THINGS), list(INKS)).to(machine.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    average = Average(model, 0.99)
    run = Run(folder, minutes, {"model": model, "optimizer": optimizer, "average": average}, machine.clock)
    pool = DrawingPool(machine, seed + run.step)
    for _ in run.steps():
        new = 16 if pool.scenes else 256
        images, scenes = pool.batch(64 * machine.batch_factor, new * machine.batch_factor)
        for group in optimizer.param_groups:
            group["lr"] = run.rate(3e-3)
        loss = compute_loss(model, degrade(images).contiguous(memory_format=torch.channels_last), scenes)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        average.update()
        run.log(loss=loss.item())
    model.cpu().load_state_dict(average.shadow)
    model.save(out)
    print(json.dumps(validate(Recogniser.load(out), seed)))


def validate(model: Recogniser, seed: int, count: int = 500) -> dict[str, dict[str, float]]:
    """Returns scores on held-out drawings, with their own scenes and with shuffled ones."""
    rng = np.random.default_rng([seed, 99])
    scenes = [sample_scene(rng, MIXTURE, held_out=True) for _ in range(count)]
    recognitions = model.recognise([render(scene, (256, 256), rng) for scene in scenes])
    return {"own": scores(scenes, recognitions), "shuffled": scores(scenes[1:] + scenes[:1], recognitions)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/recogniser"))
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    add_arguments(parser)
    arguments = parser.parse_args()
    train(arguments.folder, arguments.minutes, arguments.seed, arguments.out, machine_from_arguments(arguments))


if __name__ == "__main__":
    main()
