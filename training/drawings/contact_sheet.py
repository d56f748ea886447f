"""Writes a sheet of sample drawings with prompts: `python -m training.drawings.contact_sheet out.png`."""

import argparse
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from training.drawings.prompts import prompt
from training.drawings.render import render
from training.drawings.sampling import Mixture, sample_scene
from training.drawings.scene import THINGS, Item, Scene

CAPTION_LINES, CAPTION_CHARACTERS, LINE_PX = 3, 30, 12


def sheet(cells: list[tuple[Image.Image, str]], columns: int, side: int = 160) -> Image.Image:
    """Arranges the images in rows, each with its text below."""
    rows = -(-len(cells) // columns)
    cell_width, cell_height = side + 8, side + 8 + CAPTION_LINES * LINE_PX
    out = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    pen = ImageDraw.Draw(out)
    for index, (image, text) in enumerate(cells):
        x, y = index % columns * cell_width + 4, index // columns * cell_height + 4
        thumbnail = image.copy()
        thumbnail.thumbnail((side, side), Image.Resampling.LANCZOS)
        out.paste(thumbnail, (x, y))
        pen.rectangle((x - 1, y - 1, x + thumbnail.width, y + thumbnail.height), outline=(190, 190, 190))
        for line, caption in enumerate(textwrap.wrap(text, CAPTION_CHARACTERS)[:CAPTION_LINES]):
            pen.text((x, y + side + 1 + line * LINE_PX), caption, fill="black", font_size=10)
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
        scenes = [sample_scene(rng, Mixture()) for _ in range(arguments.count)]
    size = (arguments.side, arguments.side)
    sheet([(render(scene, size, rng), prompt(scene, rng)) for scene in scenes], columns=8).save(arguments.out)


if __name__ == "__main__":
    main()
