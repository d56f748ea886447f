"""Trains the two text encoders on prompts alone: `python -m training.train_text_encoders --minutes 4`.

Probe heads predict the scene (things, inks, relation, background, letters) from T5's prompt embeds and from CLIP's
pooled embeds. They are discarded after training.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

from training.drawings.prompts import prompt
from training.drawings.sampling import Mixture, sample_scene
from training.drawings.scene import BACKGROUNDS, INKS, THINGS, Scene
from training.drawings.strokes import Rng
from training.hardware import Machine, add_arguments, machine_from_arguments
from training.text_encoders import WIDTH, Encoders
from training.tokenizers import TEXT_TOKENS
from training.training_run import Average, Run

LETTERS = 6
PADDED_SHARE = 0.5
"""Share of batches that are padded to the service's sequence length. The others are faster."""
NOTHING = -100
"""Class index of a question that does not apply to a scene; the loss ignores it."""

_RELATIONS = ("left of", "right of", "above", "below")
QUESTIONS: dict[str, int] = {
    "first": len(THINGS) + 1,
    "second": len(THINGS) + 2,
    "first ink": len(INKS),
    "second ink": len(INKS),
    "relation": len(_RELATIONS),
    "paper": len(BACKGROUNDS),
    **{f"letter {k}": 27 for k in range(LETTERS)},
}


def answers(scene: Scene) -> list[int]:
    """Returns the class that answers each of `QUESTIONS`."""
    things, inks = list(THINGS), list(INKS)
    first, second = scene.items[0], scene.items[1] if len(scene.items) > 1 else None
    index = [things.index(item.name) if item.kind == "thing" else len(things) for item in scene.items]
    word = next((item.name for item in scene.items if item.kind == "word"), None)
    letters = [NOTHING] * LETTERS
    if word is not None:
        word_classes = [ord(letter) - 96 for letter in word[:LETTERS]]
        letters = word_classes + [0] * (LETTERS - len(word_classes))
    return [
        index[0],
        index[1] if second else len(things) + 1,
        inks.index(first.ink),
        inks.index(second.ink) if second else NOTHING,
        _RELATIONS.index(scene.relation) if scene.relation else NOTHING,
        list(BACKGROUNDS).index(scene.background),
        *letters,
    ]


class ProbeHeads(nn.Module):
    """Answers `QUESTIONS`: from T5 with one attention query each, from CLIP with one linear layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(QUESTIONS), WIDTH) * WIDTH**-0.5)
        self.keys = nn.Linear(WIDTH, WIDTH)
        self.from_t5 = nn.ModuleList(nn.Linear(WIDTH, classes) for classes in QUESTIONS.values())
        self.from_clip = nn.ModuleList(nn.Linear(WIDTH, classes) for classes in QUESTIONS.values())

    def forward(self, tokens: torch.Tensor, pooled: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        attention = (self.queries @ self.keys(tokens).transpose(1, 2)).softmax(dim=-1)
        attended = attention @ tokens
        return [(self.from_t5[k](attended[:, k]), self.from_clip[k](pooled)) for k in range(len(QUESTIONS))]


def vary_case(text: str, rng: Rng) -> str:
    """Capitalises some prompts and adds a full stop to some, as users do."""
    if rng.random() < 0.25:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.1 else text


def batch(rng: Rng, count: int, *, held_out: bool = False) -> tuple[list[str], torch.Tensor]:
    scenes = [
        sample_scene(rng, Mixture(word=0.4, labelled=0.08, two_things=0.3), held_out=held_out) for _ in range(count)
    ]
    return [vary_case(prompt(scene, rng), rng) for scene in scenes], torch.tensor([answers(scene) for scene in scenes])


def compute_loss(logits_by_question: list[tuple[torch.Tensor, torch.Tensor]], targets: torch.Tensor) -> torch.Tensor:
    losses = [
        nn.functional.cross_entropy(logits.float(), targets[:, k])
        for k, pair in enumerate(logits_by_question)
        for logits in pair
        if (targets[:, k] != NOTHING).any()
    ]
    return torch.stack(losses).mean()


@torch.no_grad()
def accuracy(encoders: Encoders, heads: ProbeHeads, seed: int, count: int = 500) -> dict[str, tuple[float, float]]:
    """Returns the share of right answers from T5 and from CLIP, on prompts with held-out words."""
    prompts, targets = batch(np.random.default_rng(seed), count, held_out=True)
    logits_by_question = heads(*encoders(prompts, TEXT_TOKENS))
    scores = {}
    for k, name in enumerate(QUESTIONS):
        present = targets[:, k] != NOTHING
        right = [
            float((logits.argmax(1)[present] == targets[present, k]).float().mean()) for logits in logits_by_question[k]
        ]
        scores[name] = (round(right[0], 4), round(right[1], 4))
    return scores


def train(folder: Path, minutes: float, seed: int, machine: Machine) -> None:
    torch.manual_seed(seed)
    encoders, heads = Encoders(), ProbeHeads()
    modules = nn.ModuleDict({"encoders": encoders, "readers": heads}).to(machine.device)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    average = Average(modules, 0.995)
    run = Run(folder, minutes, {"both": modules, "optimizer": optimizer, "average": average}, machine.clock)
    rng = np.random.default_rng([seed, run.step])
    for _ in run.steps():
        prompts, targets = batch(rng, 48 * machine.batch_factor)
        for group in optimizer.param_groups:
            group["lr"] = run.rate(3e-3)
        length = TEXT_TOKENS
        if rng.random() >= PADDED_SHARE:
            length = min(TEXT_TOKENS, encoders.longest(prompts) + int(rng.integers(6)))
        with machine.autocast():
            logits_by_question = heads(*encoders(prompts, length))
        loss = compute_loss(logits_by_question, targets.to(machine.device))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        average.update()
        run.log(loss=loss.item())
    modules.load_state_dict(average.shadow)
    modules.cpu()
    torch.save(encoders.state_dict(), folder / "encoders.pt")
    for name, (from_t5, from_clip) in accuracy(encoders, heads, seed + 1).items():
        print(f"{name:12} t5 {from_t5:.3f} clip {from_clip:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/text"))
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--seed", type=int, default=0)
    add_arguments(parser)
    arguments = parser.parse_args()
    train(arguments.folder, arguments.minutes, arguments.seed, machine_from_arguments(arguments))


if __name__ == "__main__":
    main()
