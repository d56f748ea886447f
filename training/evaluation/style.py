"""How far pictures are in a style: 0 is what drawings are without it, 1 what they are in it. Outliers lie beyond.

A linear discriminant on what the frozen recogniser feels in renderings with and without the style: it is fitted in
seconds, from renderings alone. Knows nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from serve.model_specs import Size
from training.drawings.ink import rendered
from training.drawings.sampling import sampled
from training.drawings.strokes import Rng
from training.evaluation.recogniser import Recogniser, squared
from training.lora import Course

FITTED_ON = 200
"""Pairs of renderings, of the same scenes; half as many check the score."""
SEEN_PX = 512
"""Side at which the recogniser looks for styles: four times as close as it looks for things."""
RIDGE = 0.05
"""Of the features' mean variance: they are fewer than the pictures, but not by much."""


@dataclass(frozen=True, slots=True)
class StyleScore:
    judge: Recogniser
    direction: NDArray[np.float64]
    plain: float
    """Mean of renderings without the style, along `direction`."""
    styled: float

    def of(self, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
        """(pictures,)"""
        along = features(self.judge, pictures) @ self.direction
        return (along - self.plain) / (self.styled - self.plain)


def features(judge: Recogniser, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
    """(pictures, 128): mean and deviation of each channel of the trunk over the places where there is ink."""
    rows = []
    for picture in pictures:
        with torch.no_grad():
            felt = judge.trunk(squared(picture, SEEN_PX)[None])[0].flatten(1).double()
        weight = (felt - felt.median(dim=1, keepdim=True).values).abs().sum(0)
        weight = weight / weight.sum()
        mean = (felt * weight).sum(1)
        rows.append(torch.cat([mean, ((felt - mean[:, None]).square() * weight).sum(1).sqrt()]).numpy())
    return np.array(rows)


def pairs(course: Course, size: Size, count: int, rng: Rng) -> tuple[list[Image.Image], list[Image.Image]]:
    """Renderings of the same scenes without the style and in it."""
    scenes = [sampled(rng, course.mixture) for _ in range(count)]
    plain = [rendered(scene, size, rng) for scene in scenes]
    return plain, [rendered(scene, size, rng, style=course.style) for scene in scenes]


def fitted(
    judge: Recogniser, course: Course, size: Size, seed: int, count: int = FITTED_ON
) -> tuple[StyleScore, float]:
    """The score, and the share of other renderings that it puts on the right side of a half."""
    rng = np.random.default_rng([seed, 5])
    plain, styled = (features(judge, side) for side in pairs(course, size, count, rng))
    within = (np.cov(plain.T) + np.cov(styled.T)) / 2
    within += RIDGE * np.trace(within) / len(within) * np.eye(len(within))
    direction = np.linalg.solve(within, styled.mean(0) - plain.mean(0))
    score = StyleScore(judge, direction, float(plain.mean(0) @ direction), float(styled.mean(0) @ direction))
    without, with_it = pairs(course, size, count // 2, rng)
    right = np.concatenate([score.of(without) < 0.5, score.of(with_it) > 0.5])
    return score, float(right.mean())
