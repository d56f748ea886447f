"""Exports the trained parts as two diffusers folders: `python -m training.export serve/models`.

`dev` and `schnell` contain their transformer and scheduler, and links to the other parts in `shared`. `loras` has the
LoRAs. Transformers are stored in bfloat16, as they are served, all other weights in float16.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

from serve.model_specs import EMBEDDED_LORAS, embedded_lora_file
from test_checkpoints.checkpoint import MODEL_INDEX
from training import lora, text_encoders, tokenizers
from training.flow_matching import BASE_SHIFT, BASE_TOKENS, MAX_SHIFT, MAX_TOKENS
from training.transformer import load

SHARED = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "vae")


def export_shared(runs: Path, folder: Path) -> None:
    encoders = text_encoders.load(runs / "text")
    encoders.clip.half().save_pretrained(folder / "text_encoder")
    encoders.t5.half().save_pretrained(folder / "text_encoder_2")
    tokenizers.save_clip_tokenizer(folder / "tokenizer")
    tokenizers.t5_tokenizer().save_pretrained(folder / "tokenizer_2")
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(runs / "autoencoder" / "vae")
    vae.register_to_config(_name_or_path="")  # Otherwise the configuration would contain a local path.
    vae.half().save_pretrained(folder / "vae")


def export_variant(runs: Path, variant: str, folder: Path) -> None:
    """Writes the variant's transformer and scheduler, and links to the shared parts."""
    model = load(runs / variant, guided=variant == "dev")
    model.to(torch.bfloat16).save_pretrained(folder / "transformer")
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0 if variant == "dev" else 1.0,
        use_dynamic_shifting=variant == "dev",
        base_image_seq_len=BASE_TOKENS,
        max_image_seq_len=MAX_TOKENS,
        base_shift=BASE_SHIFT,
        max_shift=MAX_SHIFT,
    )
    scheduler.save_pretrained(folder / "scheduler")
    for part in SHARED:
        (folder / part).symlink_to(Path("..") / "shared" / part, target_is_directory=True)
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n", encoding="utf-8")


def export_loras(runs: Path, out: Path) -> None:
    for name in EMBEDDED_LORAS:
        file = embedded_lora_file(name, out)
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(lora.lora_file(runs, name), file)


def write(runs: Path, out: Path) -> None:
    """Replaces `shared`, `dev`, `schnell` and `loras` in the folder `out`."""
    for name in ("shared", "dev", "schnell", "loras"):
        shutil.rmtree(out / name, ignore_errors=True)
    export_shared(runs, out / "shared")
    for variant in ("dev", "schnell"):
        (out / variant).mkdir(parents=True)
        export_variant(runs, variant, out / variant)
    export_loras(runs, out)


def weight_bytes(out: Path) -> int:
    """Returns the size of all weights; links are not counted twice."""
    return sum(path.stat().st_size for path in {path.resolve() for path in out.rglob("*.safetensors")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    write(arguments.runs, arguments.out)
    print(f"{weight_bytes(arguments.out) / 1e6:.1f} MB of weights in {arguments.out}")


if __name__ == "__main__":
    main()
