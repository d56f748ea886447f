"""Style scores: 0 is the mean of drawings without a style, 1 the mean of drawings with it.

A linear discriminant on the recogniser's features, fitted in seconds on synthetic drawings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from serve.model_specs import Size
from training.drawings.render import render
from training.drawings.sampling import sample_scene
from training.drawings.strokes import Rng
from training.evaluation.recogniser import Recogniser, to_square
from training.lora import StyleConfig

FIT_PAIRS = 200
"""Number of drawing pairs that the score is fitted on. Half as many validate it."""
INPUT_PX = 512
"""Side of the recogniser's input for styles, four times its usual side."""
RIDGE = 0.05
"""Regularisation, as a share of the features' mean variance: there are hardly more images than features."""


@dataclass(frozen=True, slots=True)
class StyleScore:
    recogniser: Recogniser
    direction: NDArray[np.float64]
    plain: float
    """Mean projection of drawings without the style."""
    styled: float

    def of(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Returns the scores, `[images]`."""
        projections = features(self.recogniser, images) @ self.direction
        return (projections - self.plain) / (self.styled - self.plain)


def features(recogniser: Recogniser, images: Sequence[Image.Image]) -> NDArray[np.float64]:
    """Returns `[images, 128]`: mean and deviation of each channel of the trunk, weighted by ink."""
    rows = []
    for image in images:
        with torch.no_grad():
            activations = recogniser.trunk(to_square(image, INPUT_PX)[None])[0].flatten(1).double()
        weight = (activations - activations.median(dim=1, keepdim=True).values).abs().sum(0)
        weight = weight / weight.sum()
        mean = (activations * weight).sum(1)
        rows.append(torch.cat([mean, ((activations - mean[:, None]).square() * weight).sum(1).sqrt()]).numpy())
    return np.array(rows)


def render_pairs(config: StyleConfig, size: Size, count: int, rng: Rng) -> tuple[list[Image.Image], list[Image.Image]]:
    """Renders the same scenes without and with the style."""
    scenes = [sample_scene(rng, config.mixture) for _ in range(count)]
    plain = [render(scene, size, rng) for scene in scenes]
    return plain, [render(scene, size, rng, style=config.style) for scene in scenes]


def fit(
    recogniser: Recogniser, config: StyleConfig, size: Size, seed: int, count: int = FIT_PAIRS
) -> tuple[StyleScore, float]:
    """Returns the score, and its accuracy at a threshold of 0.5 on other drawings."""
    rng = np.random.default_rng([seed, 5])
    plain, styled = (features(recogniser, side) for side in render_pairs(config, size, count, rng))
    covariance = (np.cov(plain.T) + np.cov(styled.T)) / 2
    covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    direction = np.linalg.solve(covariance, styled.mean(0) - plain.mean(0))
    score = StyleScore(recogniser, direction, float(plain.mean(0) @ direction), float(styled.mean(0) @ direction))
    without, with_it = render_pairs(config, size, count // 2, rng)
    right = np.concatenate([score.of(without) < 0.5, score.of(with_it) > 0.5])
    return score, float(right.mean())
