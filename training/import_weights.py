"""Imports the embedded models for further training: `python -m training.import_weights --runs runs`.

`training.transformer --last` continues with the base. `training.distil` starts from the base plus a student's weight
delta. Optimizer states start fresh.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextModel, T5EncoderModel

from serve.model_specs import EMBEDDED_MODELS_FOLDER
from training.text_encoders import Encoders
from training.transformer import build, start_file

_WITHOUT_GUIDANCE = 1.0
"""At this guidance, [dev] is trained to match its base."""


def import_weights(models: Path, runs: Path) -> None:
    """Writes the autoencoder, the text encoders, a base, and each student's weight delta from that base."""
    AutoencoderKL.from_pretrained(models / "shared" / "vae").float().save_pretrained(runs / "autoencoder" / "vae")
    (runs / "text").mkdir(parents=True, exist_ok=True)
    torch.save(_encoders(models / "shared").state_dict(), runs / "text" / "encoders.pt")
    dev = FluxTransformer2DModel.from_pretrained(models / "dev" / "transformer").float()
    base = without_guidance(dev)
    (runs / "transformer").mkdir(parents=True, exist_ok=True)
    torch.save(base.state_dict(), start_file(runs))
    schnell = FluxTransformer2DModel.from_pretrained(models / "schnell" / "transformer").float()
    for name, student in {"dev": dev, "schnell": schnell}.items():
        (runs / name).mkdir(parents=True, exist_ok=True)
        torch.save(weight_delta(base, student), delta_file(runs, name))


def _encoders(shared: Path) -> Encoders:
    encoders = Encoders()
    encoders.t5.load_state_dict(T5EncoderModel.from_pretrained(shared / "text_encoder_2").float().state_dict())
    encoders.clip.load_state_dict(CLIPTextModel.from_pretrained(shared / "text_encoder").float().state_dict())
    return encoders


@torch.no_grad()
def without_guidance(dev: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """Returns a base equal to [dev] at guidance 1: folds that guidance embedding into the time embedding's bias."""
    base = build()
    embedder = dev.time_text_embed
    guidance = embedder.time_proj(torch.tensor([1000 * _WITHOUT_GUIDANCE]))
    bias = embedder.guidance_embedder(guidance)[0]
    base.load_state_dict({name: value for name, value in dev.state_dict().items() if "guidance_embedder" not in name})
    base.time_text_embed.timestep_embedder.linear_2.bias += bias
    return base


def delta_file(runs: Path, student: str) -> Path:
    return runs / student / "ahead.pt"


def weight_delta(base: FluxTransformer2DModel, student: FluxTransformer2DModel) -> dict[str, torch.Tensor]:
    """Returns the student's weights minus the base's; weights that the base lacks are returned unchanged."""
    base_state = base.state_dict()
    return {
        name: value - base_state[name] if name in base_state else value for name, value in student.state_dict().items()
    }


def apply_delta(base: FluxTransformer2DModel, student: FluxTransformer2DModel, delta: dict[str, torch.Tensor]) -> None:
    """Adds the weight delta of an earlier student to `base` and loads the result into `student`."""
    base_state = base.state_dict()
    student.load_state_dict(
        {name: value + base_state[name] if name in base_state else value for name, value in delta.items()}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=EMBEDDED_MODELS_FOLDER)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    import_weights(arguments.models, arguments.runs)


if __name__ == "__main__":
    main()
