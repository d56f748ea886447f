"""Trains all parts in order and writes `serve/models`: `python -m training --hours 13`.

Training can be stopped at any time; the same command resumes it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from serve.model_specs import EMBEDDED_LORAS

SHARES = {
    "autoencoder": 0.03,
    "refine": 0.04,
    "text": 0.02,
    "triggers": 0.01,
    "recogniser": 0.12,
    "transformer": 0.66,
    "dev": 0.05,
    "schnell": 0.05,
    **dict.fromkeys(EMBEDDED_LORAS, 0.01),
}
"""Share of the training time per part, about as for the embedded models.
The recogniser is trained before the models that it evaluates."""


def commands(
    runs: Path, out: Path, minutes: float, device: str, *, threads: int = 1, compiles: bool = False
) -> list[list[str]]:
    """Returns the command line of each part, in order."""
    compile_option = ["--compile"] if compiles else []
    device_options = ["--device", device, "--threads", str(threads)]
    options = {part: ["--minutes", str(round(minutes * share, 2)), *device_options] for part, share in SHARES.items()}
    return [
        ["training.autoencoder", "--folder", str(runs / "autoencoder"), *options["autoencoder"]],
        ["training.finetune_autoencoder", "--runs", str(runs), *options["refine"]],
        ["training.train_text_encoders", "--folder", str(runs / "text"), *options["text"]],
        ["training.finetune_text_encoders", "--folder", str(runs / "text"), *options["triggers"]],
        ["training.train_recogniser", "--folder", str(runs / "recogniser"), *options["recogniser"]],
        ["training.transformer", "--runs", str(runs), *options["transformer"], *compile_option],
        ["training.distil", "dev", "--runs", str(runs), *options["dev"], *compile_option],
        ["training.distil", "schnell", "--runs", str(runs), *options["schnell"], *compile_option],
        *(["training.lora", name, "--runs", str(runs), *options[name], *compile_option] for name in EMBEDDED_LORAS),
        ["training.export", str(out), "--runs", str(runs)],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("serve/models"))
    parser.add_argument("--hours", type=float, default=13, help="total time of all parts; processor time on a CPU")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; more help only on an idle machine")
    parser.add_argument("--compile", action="store_true", help="compile the transformers' blocks; faster on a CPU")
    arguments = parser.parse_args()
    minutes = arguments.hours * 60
    for command in commands(
        arguments.runs,
        arguments.out,
        minutes,
        arguments.device,
        threads=arguments.threads,
        compiles=arguments.compile,
    ):
        print("==", *command, flush=True)
        subprocess.run([sys.executable, "-m", *command], check=True)


if __name__ == "__main__":
    main()
