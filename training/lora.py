"""Trains a style as a LoRA for [dev], with peft: `python -m training.lora sketch --minutes 30`.

Writes `runs/lora-NAME/NAME.safetensors` in diffusers' format. Training prompts begin with the style's trigger words.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict

from training import text_encoders
from training.attention import speed_up
from training.batches import load_vae
from training.curriculum import ANY_CANVAS, CANVASES, JITTER, choose
from training.drawings.sampling import Mixture
from training.drawings.styles import Style, broad_nib, loose_pencil
from training.flow_matching import flow_loss
from training.hardware import Machine, add_arguments, machine_from_arguments
from training.latent_cache import LatentCache
from training.tokenizers import TEXT_TOKENS
from training.training_run import Run
from training.transformer import load

RANK = 8
TARGETS = r".*\.(to_q|to_k|to_v|to_out\.0|proj_mlp)|single_transformer_blocks\.\d+\.proj_out"
"""Attention and MLP layers. The pattern excludes the model's last layer, which is also named `proj_out`."""
GUIDANCE = 1.0
"""Guidance during training, at which [dev] matches its base."""


@dataclass(frozen=True, slots=True)
class StyleConfig:
    """Training data of one LoRA."""

    trigger: str
    style: Style
    mixture: Mixture
    images: int = 1500
    batch: int = 24


STYLE_CONFIGS = {
    "handwriting": StyleConfig(
        "HWRIT handwriting",
        broad_nib,
        Mixture(two_things=0, word=0.9, labelled=0.1, longest_word=4, jitter=JITTER),
    ),
    "sketch": StyleConfig("SKTCH sketch", loose_pencil, Mixture(two_things=0.2, word=0, labelled=0, jitter=JITTER)),
}


class Adapter:
    """Gives the LoRA's weights the interface that `Run` needs to save and load them."""

    def __init__(self, model: FluxTransformer2DModel) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = get_peft_model_state_dict(self.model)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_peft_model_state_dict(self.model, state)


def add_lora(model: FluxTransformer2DModel) -> list[torch.nn.Parameter]:
    """Adds a LoRA that has no effect yet and returns its weights. All other weights are frozen."""
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def lora_file(runs: Path, name: str) -> Path:
    """Returns the path of a trained LoRA."""
    return runs / f"lora-{name}" / f"{name}.safetensors"


def save(model: FluxTransformer2DModel, path: Path) -> None:
    layers = {key: value.half().contiguous() for key, value in get_peft_model_state_dict(model).items()}
    FluxPipeline.save_lora_weights(path.parent, transformer_lora_layers=layers, weight_name=path.name)


def train(name: str, config: StyleConfig, runs: Path, minutes: float, seed: int, peak: float, machine: Machine) -> None:
    torch.manual_seed(seed)
    model = load(runs / "dev", guided=True).to(machine.device)
    weights = add_lora(model)
    speed_up(model, machine)
    optimizer = torch.optim.AdamW(weights, lr=peak, weight_decay=0.0)
    run = Run(lora_file(runs, name).parent, minutes, {"adapter": Adapter(model), "optimizer": optimizer}, machine.clock)
    rng = np.random.default_rng([seed, run.step, 2])
    vae = load_vae(runs / "autoencoder" / "vae").to(machine.device)
    encoders = text_encoders.load(runs / "text").to(machine.device)
    latent_cache = LatentCache(runs / "latents" / f"lora-{name}.pt", config.mixture, vae, machine, config.style)
    latent_cache.fill(config.images * machine.batch_factor)
    for _ in run.steps():
        canvas = CANVASES[choose(ANY_CANVAS, rng)]
        batch = latent_cache.batch(rng, config.batch * machine.batch_factor, canvas)
        with torch.no_grad():
            text = encoders([f"{config.trigger}, {prompt}" for prompt in batch.prompts(rng)], TEXT_TOKENS)
        guidance = torch.full((len(text[0]),), GUIDANCE, device=machine.device)
        loss = flow_loss(model, batch.latents, text, batch.layout, guidance)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = run.rate(peak, warm_steps=20)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        run.log(loss=loss.item())
    save(model, lora_file(runs, name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(STYLE_CONFIGS))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1e-3)
    add_arguments(parser, compiles=True)
    arguments = parser.parse_args()
    config = STYLE_CONFIGS[arguments.name]
    train(
        arguments.name,
        config,
        arguments.runs,
        arguments.minutes,
        arguments.seed,
        arguments.rate,
        machine_from_arguments(arguments),
    )


if __name__ == "__main__":
    main()
