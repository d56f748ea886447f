"""Imports the shipped models for further training: `python -m training.import_weights --runs runs`.

Then `training.transformer --last` goes on with the base, and `training.distil` gives the students what they knew
before. Optimizers begin anew. Knows nothing of lessons or losses.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextModel, T5EncoderModel

from serve.model_specs import EMBEDDED_MODELS_FOLDER
from training.encoders import Encoders
from training.transformer import build, start_file

_WITHOUT_GUIDANCE = 1.0
"""At this guidance [dev] is told to give what its base gives, with the prompt, in one pass."""


def adopt(models: Path, runs: Path) -> None:
    """Writes the autoencoder, the text encoders, a base, and what each student knows beyond that base."""
    AutoencoderKL.from_pretrained(models / "shared" / "vae").float().save_pretrained(runs / "autoencoder" / "vae")
    (runs / "text").mkdir(parents=True, exist_ok=True)
    torch.save(_encoders(models / "shared").state_dict(), runs / "text" / "encoders.pt")
    dev = FluxTransformer2DModel.from_pretrained(models / "dev" / "transformer").float()
    base = unguided(dev)
    (runs / "transformer").mkdir(parents=True, exist_ok=True)
    torch.save(base.state_dict(), start_file(runs))
    schnell = FluxTransformer2DModel.from_pretrained(models / "schnell" / "transformer").float()
    for name, student in {"dev": dev, "schnell": schnell}.items():
        (runs / name).mkdir(parents=True, exist_ok=True)
        torch.save(ahead_of(base, student), ahead_file(runs, name))


def _encoders(shared: Path) -> Encoders:
    both = Encoders()
    both.t5.load_state_dict(T5EncoderModel.from_pretrained(shared / "text_encoder_2").float().state_dict())
    both.clip.load_state_dict(CLIPTextModel.from_pretrained(shared / "text_encoder").float().state_dict())
    return both


@torch.no_grad()
def unguided(dev: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """The base that gives what [dev] gives at guidance 1: its embedding of that guidance becomes a part of time's."""
    base = build()
    told = dev.time_text_embed
    guidance = told.time_proj(torch.tensor([1000 * _WITHOUT_GUIDANCE]))
    bias = told.guidance_embedder(guidance)[0]
    base.load_state_dict({name: value for name, value in dev.state_dict().items() if "guidance_embedder" not in name})
    base.time_text_embed.timestep_embedder.linear_2.bias += bias
    return base


def ahead_file(runs: Path, student: str) -> Path:
    return runs / student / "ahead.pt"


def ahead_of(base: FluxTransformer2DModel, student: FluxTransformer2DModel) -> dict[str, torch.Tensor]:
    """By how much the student's weights differ from the base's; those that the base lacks as they are."""
    known = base.state_dict()
    return {name: value - known[name] if name in known else value for name, value in student.state_dict().items()}


def go_ahead(base: FluxTransformer2DModel, student: FluxTransformer2DModel, ahead: dict[str, torch.Tensor]) -> None:
    """Gives a student of `base` what a student of another base knew beyond that one."""
    known = base.state_dict()
    student.load_state_dict({name: value + known[name] if name in known else value for name, value in ahead.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=EMBEDDED_MODELS_FOLDER)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    adopt(arguments.models, arguments.runs)


if __name__ == "__main__":
    main()
