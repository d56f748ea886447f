"""Evaluates whether generated images match their prompts: `python -m training.evaluation.quality --images out`.

Covers sizes in both precisions, aspect ratios, guidance, image-to-image strengths, inpainting and LoRAs, on held-out
prompts, scored by the recogniser. Prints a table, then one JSON line.
"""

import argparse
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, get_args

from benchmarks.report import report
from serve.model_specs import EMBEDDED_LORAS, MODEL_SPECS, Size, VariantName, embedded_lora_file
from serve.output_sizes import SIZES
from serve.settings import Fp8Kernel, Precision
from training.drawings.contact_sheet import sheet
from training.evaluation import style
from training.evaluation.generation_tasks import (
    EvaluationTask,
    Row,
    Scores,
    image_to_image,
    inpainting,
    styled,
    text_to_image,
)
from training.evaluation.generator import ImageGenerator
from training.evaluation.recogniser import Recogniser
from training.lora import STYLE_CONFIGS

PRECISIONS: tuple[Precision, ...] = ("bf16", "fp8")
GUIDANCE = 3.0
RATIOS = [ratio for ratio in SIZES["0.25"] if ratio != "1:1"]
SHEET_IMAGES = 24
"""Images on a sheet."""


def rows(sizes: Iterable[Size], variants: Sequence[VariantName] = tuple(MODEL_SPECS)) -> list[Row]:
    """Sizes in both precisions for each variant."""
    guidances = {"dev": GUIDANCE, "schnell": None}
    return [
        Row(variant, precision, size, guidances[variant])
        for variant, precision, size in product(variants, PRECISIONS, sizes)
    ]


def swept_rows(guidances: Iterable[float], ratios: Iterable[str], swept: Size) -> list[Row]:
    """[dev] at other guidance scales, then at other aspect ratios."""
    table = [Row("dev", "bf16", swept, guidance) for guidance in guidances if guidance != GUIDANCE]
    return table + [Row("dev", "bf16", SIZES["0.25"][ratio], GUIDANCE) for ratio in ratios]


class Table:
    """Scores by row, printed as they are computed."""

    def __init__(self, models: Path, images: Path | None, seed: int, fp8_kernel: Fp8Kernel = "auto") -> None:
        self.models, self.images, self.seed, self.fp8_kernel = models, images, seed, fp8_kernel
        self.recogniser, self.scores = Recogniser.load(), dict[str, Scores]()

    def generator(self, row: Row, **options: Any) -> ImageGenerator:
        source = str(self.models / row.variant)
        return ImageGenerator(row.variant, source, row.precision, fp8_kernel=self.fp8_kernel, **options)

    def add(self, name: str, scores: Scores) -> None:
        self.scores[name] = scores
        print(name, scores, flush=True)

    def run_text_to_image(self, row: Row, count: int) -> None:
        with self.generator(row) as generator:
            scores, images = text_to_image(EvaluationTask(generator, row, self.recogniser, count, self.seed))
        self.add(str(row), scores)
        if self.images:
            self.images.mkdir(parents=True, exist_ok=True)
            sheet(images[:SHEET_IMAGES], columns=8).save(self.images / f"{str(row).replace(' ', '-')}.png")

    def run_image_to_image(self, row: Row, strengths: Iterable[float], count: int) -> None:
        with self.generator(row) as generator:
            task = EvaluationTask(generator, row, self.recogniser, count, self.seed)
            for strength in strengths:
                self.add(f"{row} strength {strength:g}", image_to_image(task, strength))
            self.add(f"{row} inpainting", inpainting(task))

    def run_styles(self, row: Row, scales: Iterable[float], count: int) -> None:
        loras = {name: embedded_lora_file(name, self.models) for name in EMBEDDED_LORAS}
        with self.generator(row, loras=loras) as generator:
            task = EvaluationTask(generator, row, self.recogniser, count, self.seed)
            for name in EMBEDDED_LORAS:
                score, accuracy = style.fit(self.recogniser, STYLE_CONFIGS[name], row.size, self.seed)
                self.add(f"style classifier of {name}", {"right": accuracy})
                scores, plain = styled(task, name, score, None)
                self.add(f"{row} no LoRA, prompts of {name}", scores)
                for scale in scales:
                    scores, images = styled(task, name, score, scale)
                    same = [a.tobytes() == b.tobytes() for a, b in zip(plain, images, strict=True)]
                    self.add(f"{row} {name} {scale:g}", scores | {"as without": sum(same) / count})


def run_swept(table: Table, arguments: argparse.Namespace) -> None:
    """The rows of all options other than sizes and precisions."""
    swept = (arguments.swept, arguments.swept)
    for row in swept_rows(arguments.guidances, arguments.ratios, swept):
        table.run_text_to_image(row, arguments.swept_count)
    default_row = Row("dev", "bf16", swept, GUIDANCE)
    table.run_image_to_image(default_row, arguments.strengths, arguments.swept_count)
    table.run_styles(default_row, arguments.scales, arguments.swept_count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("serve/models"), help="folder of dev, schnell and loras")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=list(MODEL_SPECS),
        choices=MODEL_SPECS,
        help="variants to evaluate in all sizes",
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024], help="sides of square images")
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[500], help="images per row: one number, or one per size"
    )
    parser.add_argument("--swept", type=int, default=512, help="side of the images for the other options")
    parser.add_argument("--swept-count", type=int, default=100, help="images per row of the other options; 0: no rows")
    parser.add_argument(
        "--fp8-kernel",
        default="auto",
        choices=get_args(Fp8Kernel),
        help="how fp8 multiplies; on a CPU, rowwise emulates the float8 units of a GPU",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidances", type=float, nargs="*", default=[1.0, 2.0, 3.0, 5.0, 7.0])
    parser.add_argument("--ratios", nargs="*", default=RATIOS, choices=RATIOS, help="aspect ratios to evaluate")
    parser.add_argument("--strengths", type=float, nargs="*", default=[0.2, 0.4, 0.6, 0.8])
    parser.add_argument("--scales", type=float, nargs="*", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--images", type=Path, help="folder for grids of images")
    arguments = parser.parse_args()
    counts = arguments.counts * len(arguments.sizes) if len(arguments.counts) == 1 else arguments.counts
    if len(counts) != len(arguments.sizes):
        parser.error("--counts takes one number, or one for each of --sizes")
    count_by_side = dict(zip(arguments.sizes, counts, strict=True))
    table = Table(arguments.models, arguments.images, arguments.seed, arguments.fp8_kernel)
    for row in rows([(side, side) for side in count_by_side], arguments.variants):
        table.run_text_to_image(row, count_by_side[row.size[0]])
    if arguments.swept_count:
        run_swept(table, arguments)
    report(
        "do the images of the embedded models show what their prompts say?", vars(arguments), {"scores": table.scores}
    )


if __name__ == "__main__":
    main()
