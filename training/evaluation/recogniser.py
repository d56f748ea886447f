"""A small network that recognises things, inks and the word in an image.

`training.train_recogniser` trains it on synthetic drawings only. The service does not use it.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

SIDE = 128
CROP_PX = 320
"""Side of the central crop of large images, which contains the drawn square of 256 pixels."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WEIGHTS = Path(__file__).parent / "recogniser.safetensors"


@dataclass(frozen=True, slots=True)
class Recognition:
    """What the recogniser finds in one image."""

    things: dict[str, float]
    """Probability of each known thing."""
    inks: dict[str, float]
    word: str
    """Empty if no word was found."""

    def likeliest(self, count: int) -> set[str]:
        return set(sorted(self.things, key=lambda name: -self.things[name])[:count])


class Recogniser(nn.Module):
    """Maps images to logits of things, of inks, and of letters by column, to be decoded by CTC."""

    def __init__(self, things: list[str], inks: list[str]) -> None:
        super().__init__()
        self.names, self.ink_names = things, inks
        widths = (3, 16, 32, 64)
        self.trunk = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, 3, stride=2, padding=1),
                    nn.BatchNorm2d(b),
                    nn.ReLU(),
                    nn.Conv2d(b, b, 3, padding=1),
                    nn.BatchNorm2d(b),
                    nn.ReLU(),
                )
                for a, b in pairwise(widths)
            )
        )
        self.deep = nn.Sequential(
            nn.Conv2d(64, 96, 3, stride=2, padding=1),
            nn.BatchNorm2d(96),
            nn.ReLU(),
            nn.Conv2d(96, 96, 3, padding=1),
            nn.BatchNorm2d(96),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.things = nn.Sequential(nn.Flatten(), nn.Linear(96 * 16, 192), nn.ReLU(), nn.Linear(192, len(things)))
        self.inks = nn.Linear(64, len(inks))
        self.columns = nn.Sequential(
            nn.Conv1d(64 * 16, 128, 1),
            nn.ReLU(),
            nn.Conv1d(128, 128, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(128, len(LETTERS) + 1, 1),
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Maps `[batch, 3, 128, 128]` in [-1, 1] to `[batch, things]`, `[batch, inks]`, `[batch, 27, 16]`.

        The last are letters by column; class 0 is blank.
        """
        features = self.trunk(images)
        # The maximum over all positions, because ink is the darkest and most colourful part.
        inks = self.inks(features.amax(dim=(2, 3)))
        return self.things(self.deep(features)), inks, self.columns(features.flatten(1, 2))

    @torch.no_grad()
    def recognise(self, images: list[Image.Image]) -> list[Recognition]:
        """Recognises images of any size."""
        things, inks, columns = self.eval()(torch.stack([to_square(image) for image in images]))
        return [
            Recognition(
                dict(zip(self.names, things[k].sigmoid().tolist(), strict=True)),
                dict(zip(self.ink_names, inks[k].sigmoid().tolist(), strict=True)),
                ctc_decode(columns[k]),
            )
            for k in range(len(images))
        ]

    def save(self, path: Path = WEIGHTS) -> None:
        names = {"things": ",".join(self.names), "inks": ",".join(self.ink_names)}
        state = {key: value.half() if value.is_floating_point() else value for key, value in self.state_dict().items()}
        save_file(state, path, metadata=names)

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> "Recogniser":
        with safe_open(path, "pt") as file:
            names = file.metadata()
        model = cls(names["things"].split(","), names["inks"].split(","))
        model.load_state_dict(
            {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
        )
        return model.eval()


def centre_crop(image: Image.Image) -> Image.Image:
    """Crops a large image to its middle, which has the drawing, with a margin."""
    width, height = (min(CROP_PX, side) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def to_square(image: Image.Image, side_px: int = SIDE) -> torch.Tensor:
    """Returns `[3, side_px, side_px]` in [-1, 1]; pads images that are not square with their corner's colour."""
    image = centre_crop(image.convert("RGB"))
    side = max(image.size)
    square = Image.new("RGB", (side, side), image.getpixel((0, 0)))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    array = np.array(square.resize((side_px, side_px), Image.Resampling.BOX))
    return torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1


def ctc_decode(columns: torch.Tensor) -> str:
    """Decodes CTC logits `[letters + 1, columns]`: the best class per column, without repeats and blanks."""
    best = columns.argmax(dim=0).tolist()
    kept = [current for current, previous in zip(best, [0, *best], strict=False) if current not in (0, previous)]
    return "".join(LETTERS[index - 1] for index in kept)
