"""A small network that says what is drawn: things, inks, and the word. The yardstick of `benchmarks/quality.py`.

Trained by `training.train_recogniser` on renderings alone, before any model was tuned; kept out of the service. Knows
nothing of how a picture came about.
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
LOOKED_AT_PX = 320
"""Side of what is seen of large paper, where things and words stand in 256 pixels."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WEIGHTS = Path(__file__).parent / "recogniser.safetensors"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the recogniser finds in one picture."""

    things: dict[str, float]
    """Every thing it knows and how sure it is that it is there, 0 to 1."""
    inks: dict[str, float]
    word: str
    """Empty if nothing is written."""

    def likeliest(self, count: int) -> set[str]:
        return set(sorted(self.things, key=lambda name: -self.things[name])[:count])


class Recogniser(nn.Module):
    """Pictures to three answers: things (logits), inks (logits), letters (logits by column, to be read by CTC)."""

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

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(batch, 3, 128, 128) in [-1, 1] to (batch, things), (batch, inks), (batch, 27, 16); class 0 is blank."""
        features = self.trunk(pictures)
        # Ink is the darkest and the most coloured of what is there, wherever it is.
        inks = self.inks(features.amax(dim=(2, 3)))
        return self.things(self.deep(features)), inks, self.columns(features.flatten(1, 2))

    @torch.no_grad()
    def see(self, pictures: list[Image.Image]) -> list[Seen]:
        """What is in pictures of any size, seen whole on a square."""
        things, inks, columns = self.eval()(torch.stack([squared(picture) for picture in pictures]))
        return [
            Seen(
                dict(zip(self.names, things[k].sigmoid().tolist(), strict=True)),
                dict(zip(self.ink_names, inks[k].sigmoid().tolist(), strict=True)),
                read(columns[k]),
            )
            for k in range(len(pictures))
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


def middle(picture: Image.Image) -> Image.Image:
    """Large paper is drawn on in its middle only: that, and a margin around it."""
    width, height = (min(LOOKED_AT_PX, side) for side in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def squared(picture: Image.Image, side_px: int = SIDE) -> torch.Tensor:
    """(3, side_px, side_px) in [-1, 1]; what is not square lies on paper of the tone at its corner."""
    picture = middle(picture.convert("RGB"))
    side = max(picture.size)
    square = Image.new("RGB", (side, side), picture.getpixel((0, 0)))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    array = np.array(square.resize((side_px, side_px), Image.Resampling.BOX))
    return torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1


def read(columns: torch.Tensor) -> str:
    """The word of CTC logits (letters + 1, columns): the best class of each column, repeats and blanks taken out."""
    best = columns.argmax(dim=0).tolist()
    kept = [now for now, before in zip(best, [0, *best], strict=False) if now not in (0, before)]
    return "".join(LETTERS[index - 1] for index in kept)
