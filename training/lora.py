"""Trains a style as a LoRA for [dev], with peft: `python -m training.lora sketch --minutes 30`.

Writes `runs/lora-NAME/NAME.safetensors` in the layout that diffusers and this service read. What the style is called in
a prompt stands at its beginning. Knows the lessons of one style, and nothing of how the service keeps LoRAs.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict

from training import encoders
from training.attention import speed_up
from training.curriculum import ANY_PAPER, HAND, PAPERS, one_of
from training.drawings.sampling import Mixture
from training.drawings.styles import Style, broad_nib, loose_pencil
from training.flow import flow_loss
from training.latent_cache import Shelf
from training.machine import Machine, add_arguments, chosen
from training.run import Run
from training.teacher import load_vae
from training.transformer import load
from training.vocabulary import TEXT_TOKENS

RANK = 8
TARGETS = r".*\.(to_q|to_k|to_v|to_out\.0|proj_mlp)|single_transformer_blocks\.\d+\.proj_out"
"""Attention, and the single blocks' own layers; the model's last layer is called `proj_out` too."""
GUIDANCE = 1.0
"""What a guided model is told while it learns a style: pictures as they are."""


@dataclass(frozen=True, slots=True)
class Course:
    """What one LoRA is taught."""

    trigger: str
    style: Style
    mixture: Mixture
    pictures: int = 1500
    batch: int = 24


COURSES = {
    "handwriting": Course(
        "HWRIT handwriting",
        broad_nib,
        Mixture(two_things=0, word=0.9, labelled=0.1, longest_word=4, unsteadiness=HAND),
    ),
    "sketch": Course("SKTCH sketch", loose_pencil, Mixture(two_things=0.2, word=0, labelled=0, unsteadiness=HAND)),
}


class Adapter:
    """The LoRA's part of a model, as a part of a run."""

    def __init__(self, model: FluxTransformer2DModel) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = get_peft_model_state_dict(self.model)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_peft_model_state_dict(self.model, state)


def adapted(model: FluxTransformer2DModel) -> list[torch.nn.Parameter]:
    """Adds a LoRA that does nothing yet, and gives its weights; all others are frozen."""
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trained(runs: Path, name: str) -> Path:
    """The file of a trained LoRA."""
    return runs / f"lora-{name}" / f"{name}.safetensors"


def save(model: FluxTransformer2DModel, path: Path) -> None:
    layers = {key: value.half().contiguous() for key, value in get_peft_model_state_dict(model).items()}
    FluxPipeline.save_lora_weights(path.parent, transformer_lora_layers=layers, weight_name=path.name)


def train(name: str, course: Course, runs: Path, minutes: float, seed: int, peak: float, machine: Machine) -> None:
    torch.manual_seed(seed)
    model = load(runs / "dev", guided=True).to(machine.device)
    weights = adapted(model)
    speed_up(model, machine)
    optimizer = torch.optim.AdamW(weights, lr=peak, weight_decay=0.0)
    run = Run(trained(runs, name).parent, minutes, {"adapter": Adapter(model), "optimizer": optimizer}, machine.clock)
    rng = np.random.default_rng([seed, run.step, 2])
    vae = load_vae(runs / "autoencoder" / "vae").to(machine.device)
    readers = encoders.load(runs / "text").to(machine.device)
    shelf = Shelf(runs / "latents" / f"lora-{name}.pt", course.mixture, vae, machine, course.style)
    shelf.grow(course.pictures * machine.batch_factor)
    for _ in run.steps():
        paper = PAPERS[one_of(ANY_PAPER, rng)]
        given = shelf.batch(rng, course.batch * machine.batch_factor, paper)
        with torch.no_grad():
            words = readers([f"{course.trigger}, {said}" for said in given.prompts(rng)], TEXT_TOKENS)
        told = torch.full((len(words[0]),), GUIDANCE, device=machine.device)
        loss = flow_loss(model, given.latents, words, given.place, told)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = run.rate(peak, warm_steps=20)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        run.log(loss=loss.item())
    save(model, trained(runs, name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(COURSES))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1e-3)
    add_arguments(parser, compiles=True)
    arguments = parser.parse_args()
    course = COURSES[arguments.name]
    train(
        arguments.name,
        course,
        arguments.runs,
        arguments.minutes,
        arguments.seed,
        arguments.rate,
        chosen(arguments),
    )


if __name__ == "__main__":
    main()
