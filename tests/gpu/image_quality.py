"""Compares images of the GPU tests."""

import numpy as np

from serve.model_specs import ImageArray

SIZE = (256, 192)
"""Width and height of the images of the GPU tests."""


def psnr_db(first: ImageArray, second: ImageArray) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images."""
    error = np.mean((first.astype(float) - second) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")
