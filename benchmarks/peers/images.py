"""Compares the images of two servers pixel by pixel."""

import base64
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from benchmarks.peers.workload import ImageRequest

IMAGE_CHECKS = tuple(
    ImageRequest(
        "a lighthouse at night", seed=7, width=width, height=height, num_inference_steps=2, output_format="png"
    )
    for width, height in ((256, 256), (768, 512))
)


def largest_difference(one: Sequence[str], other: Sequence[str]) -> int:
    """The largest difference of two channel values of 0 to 255; 0 for equal images. Both have `data:` URIs."""
    return max(_difference(_decode(a), _decode(b)) for a, b in zip(one, other, strict=True))


def _difference(one: np.ndarray, other: np.ndarray) -> int:
    if one.shape != other.shape:
        return 255
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def _decode(uri: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))
