"""Shows what the renderer draws: `python -m training.drawings.contact_sheet out.png` writes samples and prompts."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from training.drawings.ink import rendered
from training.drawings.prompts import prompt
from training.drawings.sampling import Mixture, sampled
from training.drawings.scene import THINGS, Item, Scene


def sheet(cells: list[tuple[Image.Image, str]], columns: int, side: int = 160) -> Image.Image:
    """The pictures in rows, each with its words below."""
    rows = -(-len(cells) // columns)
    out = Image.new("RGB", (columns * (side + 8), rows * (side + 34)), "white")
    pen = ImageDraw.Draw(out)
    for index, (picture, words) in enumerate(cells):
        x, y = index % columns * (side + 8) + 4, index // columns * (side + 34) + 4
        out.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x, y))
        pen.rectangle((x - 1, y - 1, x + side, y + side), outline=(190, 190, 190))
        pen.text((x, y + side + 1), words[:30], fill="black", font_size=10)
        pen.text((x, y + side + 13), words[30:62], fill="black", font_size=10)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--things", action="store_true", help="every thing once, instead of random scenes")
    parser.add_argument("--side", type=int, default=256)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    if arguments.things:
        scenes = [Scene((Item("thing", name, "black"),), None, "white") for name in THINGS]
    else:
        scenes = [sampled(rng, Mixture()) for _ in range(arguments.count)]
    size = (arguments.side, arguments.side)
    sheet([(rendered(scene, size, rng), prompt(scene, rng)) for scene in scenes], columns=8).save(arguments.out)


if __name__ == "__main__":
    main()
