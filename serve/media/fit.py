"""Brings input pictures and masks to the size of a plan: scaled, then cropped around the centre, never stretched.

Pure; the size itself is decided in `serve.plan`.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from serve.catalog import Size

Pixels = npt.NDArray[np.uint8]

REPAINTED_FROM = 128
"""Grey level from which a mask counts as white."""


def fit(image: Image.Image, size: Size) -> Pixels:
    """`image`, in mode RGB, as [height, width, 3]. A picture of this size already comes back unchanged to the bit."""
    return np.array(ImageOps.fit(image, size, method=Image.Resampling.LANCZOS))


def fit_mask(mask: Image.Image, picture_size: Size, size: Size) -> Pixels:
    """`mask`, in mode L, as [height, width] of 0 (keep) and 255 (repaint), in register with the fitted picture.

    `picture_size` is that of the decoded picture before it was fitted; a mask of another size is stretched to it.
    """
    whole = mask.resize(picture_size, Image.Resampling.NEAREST)
    cropped = np.asarray(ImageOps.fit(whole, size, method=Image.Resampling.NEAREST))
    return np.where(cropped >= REPAINTED_FROM, np.uint8(255), np.uint8(0))
