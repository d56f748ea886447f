"""Renders strokes to an image."""

import numpy as np
from PIL import Image, ImageDraw

from training.drawings.scene import BACKGROUNDS, FRAME_PX, ColouredStrokes, Scene, Size, scene_strokes
from training.drawings.strokes import Rng
from training.drawings.styles import Style

SUPERSAMPLING = 3


def coverage(drawing: ColouredStrokes, size: Size) -> np.ndarray:
    """Returns how much of each pixel the strokes cover, 0 to 1."""
    mask = Image.new("L", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING))
    pen = ImageDraw.Draw(mask)
    width = max(2, round(drawing.width_px * SUPERSAMPLING))
    radius = width / 2 - 0.5
    for stroke in drawing.strokes:
        points = [(float(x), float(y)) for x, y in stroke * SUPERSAMPLING]
        pen.line(points, fill=255, width=width, joint="curve")
        for x, y in (points[0], points[-1]):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(mask.reduce(SUPERSAMPLING), dtype=np.float32) / 255


def render(
    scene: Scene,
    size: Size,
    rng: Rng,
    jitter: float = 1.0,
    style: Style | None = None,
    frame_px: float = FRAME_PX,
) -> Image.Image:
    """Renders the scene at `size` (width, height) in pixels. The same generator state gives the same image."""
    background = np.array(BACKGROUNDS[scene.background], dtype=np.float32) + rng.normal(0, 1.5, 3).astype(np.float32)
    image = np.broadcast_to(background, (size[1], size[0], 3)).copy()
    drawings = scene_strokes(scene, size, rng, jitter, frame_px)
    for drawing in style(drawings, rng) if style else drawings:
        alpha = coverage(drawing, size)[..., None]
        image = image * (1 - alpha) + np.array(drawing.ink, dtype=np.float32) * alpha
    return Image.fromarray(image.clip(0, 255).round().astype(np.uint8))
