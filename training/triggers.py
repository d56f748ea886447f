"""Teaches the text encoders to read past a LoRA's trigger: `python -m training.triggers --minutes 6`.

`HWRIT handwriting, the word sun in red` is to say what `the word sun in red` says: a trigger's letters would else be
taken for those of the word to be written. What they say of prompts alone stays as it is, so nothing that learned from
it has to learn again. Replaces what `training.text` stored. Knows nothing of pictures or styles.
"""

import argparse
from copy import deepcopy
from pathlib import Path
from string import ascii_uppercase

import numpy as np
import torch

from training import encoders
from training.drawings.strokes import Rng
from training.encoders import Encoders
from training.machine import Machine, add_arguments, chosen
from training.run import Average, Run
from training.text import batch
from training.vocabulary import TEXT_TOKENS

WITHOUT = 0.4
"""Share of prompts without a trigger."""
_OFTEN = ("HWRIT handwriting", "SKTCH sketch", "TOK", "in the style of TOK", "a drawing in the style of TOK")
_KINDS = ("", "", " style", " sketch", " handwriting", " drawing", " illustration")


def trigger(rng: Rng) -> str:
    """Capitals that mean nothing, and what kind of picture it is: known ones, or any."""
    if rng.random() < 0.5:
        return str(rng.choice(_OFTEN))
    name = "".join(rng.choice(list(ascii_uppercase), int(rng.integers(3, 7))))
    return name + str(rng.choice(_KINDS))


def triggered(prompt: str, rng: Rng) -> str:
    return f"{trigger(rng)}, {prompt}"


def wanted(said: torch.Tensor, behind: list[int]) -> torch.Tensor:
    """What T5 is to say of prompts that stand so many tokens `behind` the beginning: (batch, tokens, width).

    `said`: the same of the prompts alone. What is said of a trigger is what is said of padding.
    """
    moved = [
        torch.cat([row[-1:].expand(far, -1), row[: len(row) - far]]) for row, far in zip(said, behind, strict=True)
    ]
    return torch.stack(moved)


def loss_of(student: Encoders, teacher: Encoders, rng: Rng, count: int) -> torch.Tensor:
    """How far the student's word of prompts, most with a trigger, is from the teacher's of the prompts alone."""
    prompts, _ = batch(rng, count)
    heard = [said if rng.random() < WITHOUT else triggered(said, rng) for said in prompts]
    alone, longer = ([len(ids) for ids in teacher.t5_tokenizer(some).input_ids] for some in (prompts, heard))
    with torch.no_grad():
        tokens, pooled = teacher(prompts, TEXT_TOKENS)
    tokens = wanted(tokens, [more - length for more, length in zip(longer, alone, strict=True)])
    given_tokens, given_pooled = student(heard, TEXT_TOKENS)
    return astray(given_tokens, tokens) + astray(given_pooled, pooled)


def astray(given: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
    """Mean square of the difference, in shares of what is said."""
    return (given.float() - said.float()).square().mean() / said.float().var()


def train(folder: Path, minutes: float, seed: int, peak: float, machine: Machine) -> None:
    torch.manual_seed(seed)
    teacher = encoders.load(folder).to(machine.device)
    student = deepcopy(teacher).requires_grad_(True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.0)
    average = Average(student, 0.99)
    parts = {"student": student, "optimizer": optimizer, "average": average}
    run = Run(folder.parent / "triggers", minutes, parts, machine.clock)
    rng = np.random.default_rng([seed, run.step, 3])
    for _ in run.steps():
        with machine.autocast():
            loss = loss_of(student, teacher, rng, 32 * machine.batch_factor)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = run.rate(peak)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        run.log(loss=loss.item())
    student.load_state_dict(average.shadow)
    torch.save(student.cpu().state_dict(), folder / "encoders.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/text"))
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=5e-4)
    add_arguments(parser)
    arguments = parser.parse_args()
    train(arguments.folder, arguments.minutes, arguments.seed, arguments.rate, chosen(arguments))


if __name__ == "__main__":
    main()
