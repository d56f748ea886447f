"""Small test images as PNG files and `data:` URIs, and a distance between images."""

import base64
import io

import numpy as np
from PIL import Image

from serve.model_specs import ImageArray


def png(width: int, height: int) -> bytes:
    """Returns a PNG with a gradient in both directions, so that scaling and cropping change its pixels."""
    across = np.linspace(0, 255, width, dtype=np.uint8)[None, :].repeat(height, axis=0)
    down = np.linspace(0, 255, height, dtype=np.uint8)[:, None].repeat(width, axis=1)
    file = io.BytesIO()
    Image.fromarray(np.stack([across, down, 255 - across], axis=-1)).save(file, "PNG")
    return file.getvalue()


def data_uri(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def psnr_db(first: ImageArray, second: ImageArray) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images."""
    error = np.mean((first.astype(float) - second) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")
