"""The evaluation tasks: text-to-image, image-to-image, inpainting and styles, on held-out prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from serve.model_specs import MODEL_SPECS, Size, VariantName
from serve.settings import Precision
from training.drawings.prompts import prompt
from training.drawings.render import render
from training.drawings.sampling import Mixture, sample_scene
from training.drawings.scene import Item, Scene
from training.drawings.strokes import Rng
from training.evaluation.generator import ImageGenerator, ImageRequest
from training.evaluation.recogniser import Recogniser
from training.evaluation.scores import scores
from training.evaluation.style import StyleScore
from training.lora import STYLE_CONFIGS

CHUNK_SIZE = 8
MIXTURE = Mixture(two_things=0.2, word=0.25, labelled=0.0)
ONE_THING = Mixture(two_things=0, word=0, labelled=0)
Scores = dict[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """How the images of one row of the table are generated."""

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
class EvaluationTask:
    """A generator, a recogniser, and the number of images. The same seed gives the same prompts."""

    generator: ImageGenerator
    row: Row
    recogniser: Recogniser
    count: int
    seed: int

    def request(self, text: str, number: int, **inputs: Any) -> ImageRequest:
        row = self.row
        return ImageRequest(text, self.seed + number, row.size, row.steps, row.guidance, **inputs)

    def generate(self, requests: Sequence[ImageRequest], label: str = "") -> list[Image.Image]:
        images: list[Image.Image] = []
        with tqdm(total=len(requests), desc=f"{self.row} {label}".strip()) as bar:
            for start in range(0, len(requests), CHUNK_SIZE):
                images += self.generator.generate(requests[start : start + CHUNK_SIZE])
                bar.update(len(images) - bar.n)
        return images


def held_out(count: int, seed: int, mixture: Mixture = MIXTURE) -> tuple[list[Scene], list[str]]:
    """Samples scenes with held-out words, and their prompts."""
    rng = np.random.default_rng([seed, 2])
    scenes = [sample_scene(rng, mixture, held_out=True) for _ in range(count)]
    return scenes, [prompt(scene, rng) for scene in scenes]


def text_to_image(task: EvaluationTask) -> tuple[Scores, list[tuple[Image.Image, str]]]:
    """Returns scores of things, inks and words, and the images with their prompts."""
    scenes, prompts = held_out(task.count, task.seed)
    images = task.generate([task.request(text, k) for k, text in enumerate(prompts)])
    return scores(scenes, task.recogniser.recognise(images)), list(zip(images, prompts, strict=True))


def image_to_image(task: EvaluationTask, strength: float) -> Scores:
    """Returns the share of drawings that still show their thing after image-to-image with their own prompt."""
    rng = np.random.default_rng([task.seed, 3])
    scenes = [sample_scene(rng, ONE_THING) for _ in range(task.count)]
    requests = [
        task.request(prompt(scene, rng), k, image=render(scene, task.row.size, rng), strength=strength)
        for k, scene in enumerate(scenes)
    ]
    recognitions = task.recogniser.recognise(task.generate(requests, f"strength {strength:g}"))
    return {"thing": scores(scenes, recognitions)["thing"]}


def inpainting(task: EvaluationTask) -> Scores:
    """Inpaints a second thing on the blank right half. Scores it, and checks that the left half is unchanged."""
    rng = np.random.default_rng([task.seed, 4])
    width, height = task.row.size
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 255
    expected, requests = [], []
    for k in range(task.count):
        scene = _side_by_side(rng)
        expected.append(Scene(scene.items[1:], None, scene.background))
        image = _left_half(render(scene, task.row.size, rng))
        requests.append(task.request(prompt(scene, rng), k, image=image, strength=1.0, mask=mask))
    images = task.generate(requests, "inpainting")
    right = task.recogniser.recognise([image.crop((width // 2, 0, width, height)) for image in images])
    kept = [
        np.array_equal(np.array(image)[:, : width // 2], np.array(request.image)[:, : width // 2])
        for image, request in zip(images, requests, strict=True)
    ]
    return {"thing": scores(expected, right)["thing"], "kept": sum(kept) / task.count}


def _side_by_side(rng: Rng) -> Scene:
    first, second = sample_scene(rng, Mixture(two_things=1, word=0, labelled=0)).items
    return Scene((first, Item("thing", second.name, first.ink)), "left of", "white")


def _left_half(image: Image.Image) -> Image.Image:
    """Blanks the right half."""
    half = (image.width - image.width // 2, image.height)
    background = image.crop((image.width - 1, 0, image.width, 1)).resize(half)
    image.paste(background, (image.width // 2, 0))
    return image


def styled(task: EvaluationTask, name: str, style: StyleScore, scale: float | None) -> tuple[Scores, list[Image.Image]]:
    """Returns style and content scores of images with the LoRA at this scale, or without it for None."""
    config = STYLE_CONFIGS[name]
    scenes, prompts = held_out(task.count, task.seed, config.mixture)
    scales = {} if scale is None else {name: scale}
    requests = [task.request(f"{config.trigger}, {text}", k, scales=scales) for k, text in enumerate(prompts)]
    images = task.generate(requests, "no LoRA" if scale is None else f"{name} {scale:g}")
    right = scores(scenes, task.recogniser.recognise(images))
    return {"style": round(float(style.of(images).mean()), 3), **right}, images
