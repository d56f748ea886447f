"""Fine-tunes the text encoders to ignore a LoRA's trigger words: `python -m training.finetune_text_encoders`.

Otherwise the models would write the letters of the trigger. The embeds of prompts without a trigger do not change, so
models trained on them stay valid. Replaces the weights that `training.train_text_encoders` stored.
"""

import argparse
from copy import deepcopy
from pathlib import Path
from string import ascii_uppercase

import numpy as np
import torch

from training import text_encoders
from training.drawings.strokes import Rng
from training.hardware import Machine, add_arguments, machine_from_arguments
from training.text_encoders import Encoders
from training.tokenizers import TEXT_TOKENS
from training.train_text_encoders import batch
from training.training_run import Average, Run

WITHOUT_TRIGGER_SHARE = 0.4
"""Share of prompts without a trigger."""
_COMMON_TRIGGERS = ("HWRIT handwriting", "SKTCH sketch", "TOK", "in the style of TOK", "a drawing in the style of TOK")
_SUFFIXES = ("", "", " style", " sketch", " handwriting", " drawing", " illustration")


def random_trigger(rng: Rng) -> str:
    """Returns a common trigger, or random capitals that are often followed by a word such as "sketch"."""
    if rng.random() < 0.5:
        return str(rng.choice(_COMMON_TRIGGERS))
    name = "".join(rng.choice(list(ascii_uppercase), int(rng.integers(3, 7))))
    return name + str(rng.choice(_SUFFIXES))


def with_trigger(prompt: str, rng: Rng) -> str:
    return f"{random_trigger(rng)}, {prompt}"


def shift_targets(embeds: torch.Tensor, offsets: list[int]) -> torch.Tensor:
    """Returns T5's target embeds of prompts that begin `behind` tokens later, `[batch, tokens, width]`.

    `embeds` are those of the prompts without triggers. Trigger tokens get the embed of padding.
    """
    shifted = [
        torch.cat([row[-1:].expand(offset, -1), row[: len(row) - offset]])
        for row, offset in zip(embeds, offsets, strict=True)
    ]
    return torch.stack(shifted)


def compute_loss(student: Encoders, teacher: Encoders, rng: Rng, count: int) -> torch.Tensor:
    """Returns how far the student's embeds, mostly with triggers, are from the teacher's embeds without triggers."""
    prompts, _ = batch(rng, count)
    student_prompts = [text if rng.random() < WITHOUT_TRIGGER_SHARE else with_trigger(text, rng) for text in prompts]
    lengths, student_lengths = (
        [len(ids) for ids in teacher.t5_tokenizer(texts).input_ids] for texts in (prompts, student_prompts)
    )
    with torch.no_grad():
        tokens, pooled = teacher(prompts, TEXT_TOKENS)
    tokens = shift_targets(tokens, [longer - length for longer, length in zip(student_lengths, lengths, strict=True)])
    student_tokens, student_pooled = student(student_prompts, TEXT_TOKENS)
    return relative_error(student_tokens, tokens) + relative_error(student_pooled, pooled)


def relative_error(prediction: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
    """Returns the mean squared difference over the variance of `embeds`."""
    return (prediction.float() - embeds.float()).square().mean() / embeds.float().var()


def train(folder: Path, minutes: float, seed: int, peak: float, machine: Machine) -> None:
    torch.manual_seed(seed)
    teacher = text_encoders.load(folder).to(machine.device)
    student = deepcopy(teacher).requires_grad_(True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.0)
    average = Average(student, 0.99)
    parts = {"student": student, "optimizer": optimizer, "average": average}
    run = Run(folder.parent / "triggers", minutes, parts, machine.clock)
    rng = np.random.default_rng([seed, run.step, 3])
    for _ in run.steps():
        with machine.autocast():
            loss = compute_loss(student, teacher, rng, 32 * machine.batch_factor)
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
    train(arguments.folder, arguments.minutes, arguments.seed, arguments.rate, machine_from_arguments(arguments))


if __name__ == "__main__":
    main()
