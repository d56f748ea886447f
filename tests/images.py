"""Small pictures as files and data: URIs, for tests that send some."""

import base64
import io

import numpy as np
from PIL import Image


def png(width: int, height: int) -> bytes:
    """A PNG with a gradient in it, so that scaling and cropping show."""
    across = np.linspace(0, 255, width, dtype=np.uint8)[None, :].repeat(height, axis=0)
    down = np.linspace(0, 255, height, dtype=np.uint8)[:, None].repeat(width, axis=1)
    file = io.BytesIO()
    Image.fromarray(np.stack([across, down, 255 - across], axis=-1)).save(file, "PNG")
    return file.getvalue()


def data_uri(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
