"""Trains the recogniser of the quality benchmark on renderings, and shows that it can be trusted.

`python -m training.train_recogniser --minutes 8`. It must read at least 98 % of unseen images, with words that
it never saw, and no more than chance when the prompts are shuffled. Knows nothing of the models that it will judge.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from training.drawings.ink import rendered
from training.drawings.sampling import Mixture, sampled
from training.drawings.scene import INKS, THINGS, Scene
from training.drawings.strokes import Rng
from training.evaluation.recogniser import LETTERS, SIDE, WEIGHTS, Recogniser, squared
from training.evaluation.scores import scores
from training.machine import Machine, add_arguments, chosen
from training.precision import autocast
from training.run import Average, Run

MIXTURE = Mixture(two_things=0.25, word=0.4, labelled=0.05)
SIDES_PX = (128, 192, 256, 320)
FRAMES = (1.0, 0.8)
"""Of a picture's side: large paper is drawn on in its middle alone, and that is seen with a margin around it."""
POOL = 4096


def drawn(rng: Rng) -> tuple[torch.Tensor, Scene]:
    """A picture as the network sees it, and its scene."""
    scene = sampled(rng, MIXTURE)
    side = int(rng.choice(SIDES_PX))
    frame_px = side * float(rng.choice(FRAMES))
    return squared(rendered(scene, (side, side), rng, frame_px=frame_px)), scene


def targets(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    """Things (batch, things), inks (batch, inks), and the letters of each word, from 1."""
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


def worn(pictures: torch.Tensor) -> torch.Tensor:
    """Blurred and speckled a little, as a model's pictures may be: the judge should not fail them for that."""
    strength = torch.rand(len(pictures), 1, 1, 1, device=pictures.device)
    blurred = nn.functional.avg_pool2d(nn.functional.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return pictures + strength * (blurred - pictures) + 0.05 * float(torch.rand(1)) * torch.randn_like(pictures)


def loss_of(model: Recogniser, pictures: torch.Tensor, scenes: list[Scene]) -> torch.Tensor:
    things, inks, letters = targets(scenes)
    with autocast(pictures.device.type):
        seen_things, seen_inks, columns = model(pictures)
    wrong_things = nn.functional.binary_cross_entropy_with_logits(seen_things.float(), things.to(pictures.device)) * 10
    wrong_inks = nn.functional.binary_cross_entropy_with_logits(seen_inks.float(), inks.to(pictures.device)) * 2
    wrong_letters = nn.functional.ctc_loss(
        columns.float().log_softmax(1).permute(2, 0, 1),
        torch.tensor([letter for word in letters for letter in word], dtype=torch.long),
        torch.full((len(scenes),), columns.shape[2]),
        torch.tensor([len(word) for word in letters]),
        zero_infinity=True,
    )
    return wrong_things + wrong_inks + wrong_letters


class Pool:
    """Pictures kept at hand, some replaced at every step."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.machine, self.rng = machine, np.random.default_rng([seed, 1])
        self._new = machine.endless(drawn, seed)
        self.pictures = torch.empty(POOL * machine.batch_factor, 3, SIDE, SIDE, dtype=torch.half)
        self.scenes: list[Scene] = []

    def batch(self, count: int, new: int) -> tuple[torch.Tensor, list[Scene]]:
        for _ in range(new):
            self._add(*next(self._new))
        places = self.rng.integers(len(self.scenes), size=count)
        pictures = self.pictures[torch.from_numpy(places)].to(self.machine.device, torch.float32)
        return pictures, [self.scenes[place] for place in places]

    def _add(self, picture: torch.Tensor, scene: Scene) -> None:
        if len(self.scenes) < len(self.pictures):
            self.scenes.append(scene)
            place = len(self.scenes) - 1
        else:
            place = int(self.rng.integers(len(self.pictures)))
            self.scenes[place] = scene
        self.pictures[place] = picture.half()


def train(folder: Path, minutes: float, seed: int, out: Path, machine: Machine) -> None:
    torch.manual_seed(seed)
    model = Recogniser(list(THINGS), list(INKS)).to(machine.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    average = Average(model, 0.99)
    run = Run(folder, minutes, {"model": model, "optimizer": optimizer, "average": average}, machine.clock)
    pool = Pool(machine, seed + run.step)
    for _ in run.steps():
        new = 16 if pool.scenes else 256
        pictures, scenes = pool.batch(64 * machine.batch_factor, new * machine.batch_factor)
        for group in optimizer.param_groups:
            group["lr"] = run.rate(3e-3)
        loss = loss_of(model, worn(pictures).contiguous(memory_format=torch.channels_last), scenes)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        average.update()
        run.log(loss=loss.item())
    model.cpu().load_state_dict(average.shadow)
    model.save(out)
    print(json.dumps(trust(Recogniser.load(out), seed)))


def trust(model: Recogniser, seed: int, count: int = 500) -> dict[str, dict[str, float]]:
    """Scores on held-out renderings, with their own scenes and with those of other pictures."""
    rng = np.random.default_rng([seed, 99])
    scenes = [sampled(rng, MIXTURE, held_out=True) for _ in range(count)]
    seen = model.see([rendered(scene, (256, 256), rng) for scene in scenes])
    return {"own": scores(scenes, seen), "shuffled": scores(scenes[1:] + scenes[:1], seen)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/recogniser"))
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    add_arguments(parser)
    arguments = parser.parse_args()
    train(arguments.folder, arguments.minutes, arguments.seed, arguments.out, chosen(arguments))


if __name__ == "__main__":
    main()
