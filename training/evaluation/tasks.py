"""What a model is asked to draw, and how well it did: one function for each kind of task.

Held-out prompts go to an artist, the recogniser judges what comes back. Knows nothing of tables or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from serve.model_specs import MODEL_SPECS, Size, VariantName
from serve.settings import Precision
from training.drawings.ink import rendered
from training.drawings.prompts import prompt
from training.drawings.sampling import Mixture, sampled
from training.drawings.scene import Item, Scene
from training.drawings.strokes import Rng
from training.evaluation.generator import Artist, Order
from training.evaluation.recogniser import Recogniser
from training.evaluation.scores import scores
from training.evaluation.style import StyleScore
from training.lora import COURSES

AT_ONCE = 8
MIXTURE = Mixture(two_things=0.2, word=0.25, labelled=0.0)
ONE_THING = Mixture(two_things=0, word=0, labelled=0)
Scores = dict[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """In which way pictures are drawn."""

    variant: VariantName
    precision: Precision
    size: Size
    guidance: float | None = None

    @property
    def steps(self) -> int:
        return MODEL_SPECS[self.variant].recommended_steps

    def __str__(self) -> str:
        guidance = "" if self.guidance is None else f" guidance {self.guidance:g}"
        return f"{self.variant} {self.precision} {self.size[0]}x{self.size[1]} {self.steps} steps{guidance}"


@dataclass(frozen=True, slots=True)
class Exam:
    """Whom to ask and who judges; `count` pictures a task, the same ones for the same seed."""

    artist: Artist
    row: Row
    judge: Recogniser
    count: int
    seed: int

    def order(self, said: str, number: int, **more: Any) -> Order:
        row = self.row
        return Order(said, self.seed + number, row.size, row.steps, row.guidance, **more)

    def drawn(self, orders: Sequence[Order], what: str = "") -> list[Image.Image]:
        pictures: list[Image.Image] = []
        with tqdm(total=len(orders), desc=f"{self.row} {what}".strip()) as bar:
            for start in range(0, len(orders), AT_ONCE):
                pictures += self.artist.draw(orders[start : start + AT_ONCE])
                bar.update(len(pictures) - bar.n)
        return pictures


def held_out(count: int, seed: int, mixture: Mixture = MIXTURE) -> tuple[list[Scene], list[str]]:
    """Scenes with words that training never saw, and prompts for them. The same for every row."""
    rng = np.random.default_rng([seed, 2])
    scenes = [sampled(rng, mixture, held_out=True) for _ in range(count)]
    return scenes, [prompt(scene, rng) for scene in scenes]


def text_to_image(exam: Exam) -> tuple[Scores, list[tuple[Image.Image, str]]]:
    """Shares of things, inks and words that are right, and the pictures with their prompts."""
    scenes, prompts = held_out(exam.count, exam.seed)
    pictures = exam.drawn([exam.order(said, k) for k, said in enumerate(prompts)])
    return scores(scenes, exam.judge.see(pictures)), list(zip(pictures, prompts, strict=True))


def image_to_image(exam: Exam, strength: float) -> Scores:
    """Share of drawings that show their thing still when they are redrawn with their own prompt."""
    rng = np.random.default_rng([exam.seed, 3])
    scenes = [sampled(rng, ONE_THING) for _ in range(exam.count)]
    orders = [
        exam.order(prompt(scene, rng), k, picture=rendered(scene, exam.row.size, rng), strength=strength)
        for k, scene in enumerate(scenes)
    ]
    seen = exam.judge.see(exam.drawn(orders, f"strength {strength:g}"))
    return {"thing": scores(scenes, seen)["thing"]}


def inpainting(exam: Exam) -> Scores:
    """The right half, bare paper, is repainted with a second thing: is it there, and is the left half as it was?"""
    rng = np.random.default_rng([exam.seed, 4])
    width, height = exam.row.size
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 255
    wanted, orders = [], []
    for k in range(exam.count):
        both = _side_by_side(rng)
        wanted.append(Scene(both.items[1:], None, both.paper))
        picture = _left_half(rendered(both, exam.row.size, rng))
        orders.append(exam.order(prompt(both, rng), k, picture=picture, strength=1.0, mask=mask))
    pictures = exam.drawn(orders, "inpainting")
    right = exam.judge.see([picture.crop((width // 2, 0, width, height)) for picture in pictures])
    kept = [
        np.array_equal(np.array(picture)[:, : width // 2], np.array(order.picture)[:, : width // 2])
        for picture, order in zip(pictures, orders, strict=True)
    ]
    return {"thing": scores(wanted, right)["thing"], "kept": sum(kept) / exam.count}


def _side_by_side(rng: Rng) -> Scene:
    first, second = sampled(rng, Mixture(two_things=1, word=0, labelled=0)).items
    return Scene((first, Item("thing", second.name, first.ink)), "left of", "white")


def _left_half(picture: Image.Image) -> Image.Image:
    """The right half is paper."""
    half = (picture.width - picture.width // 2, picture.height)
    paper = picture.crop((picture.width - 1, 0, picture.width, 1)).resize(half)
    picture.paste(paper, (picture.width // 2, 0))
    return picture


def styled(exam: Exam, name: str, style: StyleScore, scale: float | None) -> tuple[Scores, list[Image.Image]]:
    """Style, and what is right, of pictures with the LoRA at this scale; without it if that is None."""
    course = COURSES[name]
    scenes, prompts = held_out(exam.count, exam.seed, course.mixture)
    scales = {} if scale is None else {name: scale}
    orders = [exam.order(f"{course.trigger}, {said}", k, scales=scales) for k, said in enumerate(prompts)]
    pictures = exam.drawn(orders, "no LoRA" if scale is None else f"{name} {scale:g}")
    right = scores(scenes, exam.judge.see(pictures))
    return {"style": round(float(style.of(pictures).mean()), 3), **right}, pictures
