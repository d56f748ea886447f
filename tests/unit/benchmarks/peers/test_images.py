"""The comparison of images."""

import base64
from io import BytesIO

import numpy as np
from PIL import Image

from benchmarks.peers.images import largest_difference


def uri(pixels: np.ndarray) -> str:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_largest_difference_is_that_of_the_worst_channel_of_any_image() -> None:
    pixels = np.full((4, 6, 3), 100, np.uint8)
    changed = pixels.copy()
    changed[1, 2, 0] = 93
    assert largest_difference([uri(pixels)] * 2, [uri(pixels)] * 2) == 0
    assert largest_difference([uri(pixels)] * 2, [uri(pixels), uri(changed)]) == 7


def test_images_of_different_sizes_differ() -> None:
    assert largest_difference([uri(np.zeros((4, 6, 3), np.uint8))], [uri(np.zeros((6, 4, 3), np.uint8))]) == 255
