"""Does the embedded model draw what the prompt says? `python -m benchmarks.quality --models serve/models`.

Held-out prompts are drawn in every way of `rows` and judged by the recogniser; a grid of pictures with their prompts
lies beside the table. Ends with one JSON line.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.artist import Artist, Order
from benchmarks.recogniser import Recogniser
from benchmarks.report import report
from benchmarks.scores import scores, things_right
from serve.catalog import VARIANTS, Size, VariantName
from serve.settings import Precision
from training.drawings.contact_sheet import sheet
from training.drawings.ink import rendered
from training.drawings.prompts import prompt
from training.drawings.sampling import Mixture, sampled
from training.drawings.scene import Item, Scene
from training.drawings.strokes import Rng

AT_ONCE = 8
MIXTURE = Mixture(two_things=0.2, word=0.25, labelled=0.0)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    variant: VariantName
    precision: Precision
    size: Size
    guidance: float | None = None

    @property
    def steps(self) -> int:
        return VARIANTS[self.variant].enough_steps

    def __str__(self) -> str:
        guidance = "" if self.guidance is None else f" guidance {self.guidance:g}"
        return f"{self.variant} {self.precision} {self.size[0]}x{self.size[1]} {self.steps} steps{guidance}"


def rows(sizes: Iterable[Size], guidances: Iterable[float]) -> list[Row]:
    """Sizes at the usual guidance in both precisions, then guidances at the first size."""
    sizes = list(sizes)
    precisions: tuple[Precision, ...] = ("bf16", "fp8")
    table = [Row("dev", precision, size, 3.0) for precision in precisions for size in sizes]
    table += [Row("dev", "bf16", sizes[0], guidance) for guidance in guidances if guidance != 3.0]
    return table + [Row("schnell", "bf16", size) for size in sizes]


def held_out(count: int, seed: int, mixture: Mixture = MIXTURE) -> tuple[list[Scene], list[str]]:
    """Scenes with words that training never saw, and prompts for them. The same for every row."""
    rng = np.random.default_rng([seed, 2])
    scenes = [sampled(rng, mixture, held_out=True) for _ in range(count)]
    return scenes, [prompt(scene, rng) for scene in scenes]


def drawn(artist: Artist, orders: list[Order], what: str) -> list[Image.Image]:
    pictures: list[Image.Image] = []
    with tqdm(total=len(orders), desc=what) as bar:
        for start in range(0, len(orders), AT_ONCE):
            pictures += artist.draw(orders[start : start + AT_ONCE])
            bar.update(len(pictures) - bar.n)
    return pictures


def text_to_image(
    artist: Artist, row: Row, judge: Recogniser, count: int, seed: int
) -> tuple[dict[str, float], Image.Image]:
    """Scores, and a grid of the first pictures."""
    scenes, prompts = held_out(count, seed)
    orders = [Order(said, seed + k, row.size, row.steps, row.guidance) for k, said in enumerate(prompts)]
    pictures = drawn(artist, orders, str(row))
    return scores(scenes, judge.see(pictures)), sheet(list(zip(pictures, prompts, strict=True))[:24], columns=8)


def one_thing(rng: Rng, size: Size) -> tuple[Scene, Image.Image]:
    scene = sampled(rng, Mixture(two_things=0, word=0, labelled=0))
    return scene, rendered(scene, size, rng)


def image_to_image(
    artist: Artist, row: Row, judge: Recogniser, strength: float, count: int, seed: int
) -> dict[str, float]:
    """Share of pictures that keep the input's thing when redrawn with its own prompt."""
    rng = np.random.default_rng([seed, 3])
    begun = [one_thing(rng, row.size) for _ in range(count)]
    orders = [
        Order(prompt(scene, rng), seed + k, row.size, row.steps, row.guidance, picture, strength)
        for k, (scene, picture) in enumerate(begun)
    ]
    seen = judge.see(drawn(artist, orders, f"{row} strength {strength:g}"))
    return {"thing": scores([scene for scene, _ in begun], seen)["thing"]}


def inpainting(artist: Artist, row: Row, judge: Recogniser, count: int, seed: int) -> dict[str, float]:
    """The right half is repainted with a second thing: is it there, and is the left half as it was?"""
    rng = np.random.default_rng([seed, 4])
    width, height = row.size
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 255
    wanted, orders = [], []
    for k in range(count):
        scene = sampled(rng, Mixture(two_things=1, word=0, labelled=0))
        first, second = scene.items[0], Item("thing", scene.items[1].name, scene.items[0].ink)
        both = Scene((first, second), "left of", scene.paper)
        wanted.append(Scene((second,), None, scene.paper))
        picture = rendered(both, row.size, rng)
        # Bare paper where the second thing will stand.
        corner = picture.crop((width - 1, 0, width, 1))
        picture.paste(corner.resize((width - width // 2, height)), (width // 2, 0))
        orders.append(Order(prompt(both, rng), seed + k, row.size, row.steps, row.guidance, picture, 1.0, mask))
    pictures = drawn(artist, orders, f"{row} inpainting")
    right = judge.see([picture.crop((width // 2, 0, width, height)) for picture in pictures])
    kept = [
        np.array_equal(np.array(picture)[:, : width // 2], np.array(order.picture)[:, : width // 2])
        for picture, order in zip(pictures, orders, strict=True)
    ]
    found = [bool(things_right(scene, seen)) for scene, seen in zip(wanted, right, strict=True)]
    return {"thing": round(sum(found) / count, 4), "kept": sum(kept) / count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("serve/models"), help="folder of dev and schnell")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024], help="sides of square pictures")
    parser.add_argument("--guidances", type=float, nargs="*", default=[1.0, 2.0, 3.0, 5.0, 7.0])
    parser.add_argument("--strengths", type=float, nargs="*", default=[0.2, 0.4, 0.6, 0.8])
    parser.add_argument("--pictures", type=Path, help="folder for grids of pictures")
    arguments = parser.parse_args()
    judge, table = Recogniser.load(), {}
    for row in rows([(side, side) for side in arguments.sizes], arguments.guidances):
        with Artist(row.variant, str(arguments.models / row.variant), row.precision) as artist:
            table[str(row)], grid = text_to_image(artist, row, judge, arguments.count, arguments.seed)
        print(row, table[str(row)])
        if arguments.pictures:
            arguments.pictures.mkdir(parents=True, exist_ok=True)
            grid.save(arguments.pictures / f"{str(row).replace(' ', '-')}.png")
    row = Row("dev", "bf16", (arguments.sizes[0],) * 2, 3.0)
    with Artist(row.variant, str(arguments.models / row.variant), row.precision) as artist:
        for strength in arguments.strengths:
            name = f"{row} strength {strength:g}"
            table[name] = image_to_image(artist, row, judge, strength, arguments.count, arguments.seed)
            print(name, table[name])
        table["inpainting"] = inpainting(artist, row, judge, arguments.count, arguments.seed)
        print("inpainting", table["inpainting"])
    report("Does the embedded model draw what the prompt says?", vars(arguments), {"scores": table})


if __name__ == "__main__":
    main()
