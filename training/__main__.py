"""Everything from nothing: `python -m training --hours 40` trains every part in turn and writes `serve/models`.

Stop it whenever you like, and start it again with the same command: it goes on where it was. Knows the order of the
parts and their shares of the time, nothing else.
"""

import argparse
import subprocess
import sys
from pathlib import Path

SHARES = {"autoencoder": 0.05, "text": 0.01, "recogniser": 0.02, "transformer": 0.72, "dev": 0.1, "schnell": 0.1}
"""Of the whole time. The recogniser is frozen before anything that it will judge has begun."""


def commands(
    runs: Path, out: Path, minutes: float, device: str, *, threads: int = 1, compiles: bool = False
) -> list[list[str]]:
    """The arguments of every part's module, in their order."""
    blocks = ["--compile"] if compiles else []
    where = ["--device", device, "--threads", str(threads)]
    spans = {part: ["--minutes", str(round(minutes * share, 2)), *where] for part, share in SHARES.items()}
    return [
        ["training.autoencoder", "--folder", str(runs / "autoencoder"), *spans["autoencoder"]],
        ["training.text", "--folder", str(runs / "text"), *spans["text"]],
        ["training.recogniser", "--folder", str(runs / "recogniser"), *spans["recogniser"]],
        ["training.transformer", "--runs", str(runs), *spans["transformer"], *blocks],
        ["training.distil", "dev", "--runs", str(runs), *spans["dev"], *blocks],
        ["training.distil", "schnell", "--runs", str(runs), *spans["schnell"], *blocks],
        ["training.export", str(out), "--runs", str(runs)],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("serve/models"))
    parser.add_argument("--hours", type=float, default=40, help="time of all parts together, of the processor on a CPU")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1, help="of a CPU; more pay where nothing else runs")
    parser.add_argument("--compile", action="store_true", help="compile the transformers' blocks: faster on a CPU")
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
