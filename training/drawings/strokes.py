"""Strokes as arrays of points, and their random jitter.

A stroke has shape `[n, 2]`, x to the right and y down. A thing fills about [-1, 1] in both.
"""

import math

import numpy as np
from numpy.typing import NDArray

Stroke = NDArray[np.float64]
Strokes = list[Stroke]
Rng = np.random.Generator


def line(*points: tuple[float, float]) -> Stroke:
    """Straight segments between the points."""
    return np.array(points, dtype=np.float64)


def closed(*points: tuple[float, float]) -> Stroke:
    return line(*points, points[0])


def arc(x: float, y: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0) -> Stroke:
    """Part of an ellipse around (x, y); angles in degrees, 0 is right, 90 is down."""
    steps = max(6, int(abs(end - start) / 12))
    angles = np.radians(np.linspace(start, end, steps + 1))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def circle(x: float, y: float, radius: float) -> Stroke:
    return arc(x, y, radius, radius)


def curve(*points: tuple[float, float]) -> Stroke:
    """A Bézier curve with these control points."""
    control = line(*points)
    steps = np.linspace(0, 1, 17)[:, None]
    degree = len(control) - 1
    weights = [math.comb(degree, k) * steps**k * (1 - steps) ** (degree - k) for k in range(degree + 1)]
    return sum((w * p for w, p in zip(weights, control, strict=True)), np.zeros((17, 2)))


def resample(stroke: Stroke, spacing: float) -> Stroke:
    """Returns the same line with points about `spacing` apart."""
    lengths = np.hypot(*np.diff(stroke, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    count = max(2, int(along[-1] / spacing) + 2)
    # Keeps the original points, so that corners stay sharp.
    positions = np.union1d(np.linspace(0, along[-1], count), along)
    return np.stack([np.interp(positions, along, stroke[:, axis]) for axis in (0, 1)], axis=1)


def jittered(strokes: Strokes, rng: Rng, strength: float = 1.0) -> Strokes:
    """Randomly rotates, scales, bends and shifts the strokes, as if drawn by hand."""
    turn = math.radians(rng.normal(0, 4) * strength)
    stretch = np.exp(rng.normal(0, 0.06, 2) * strength)
    matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) * stretch
    frequency = rng.uniform(1.0, 3.0, (2, 2, 2))
    phase = rng.uniform(0, 2 * math.pi, (2, 2))
    height = rng.normal(0, 0.018, (2, 2)) * strength
    out = []
    for stroke in strokes:
        fine = resample(stroke, 0.12)
        waves = sum(height[k] * np.sin(fine @ frequency[k].T + phase[k]) for k in range(2))
        out.append((fine + waves + rng.normal(0, 0.012, 2) * strength) @ matrix.T)
    return out


def bounds(strokes: Strokes) -> tuple[float, float, float, float]:
    """Returns left, top, right, bottom."""
    points = np.concatenate(strokes)
    left, top = points.min(axis=0)
    right, bottom = points.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def fitted(strokes: Strokes, centre: tuple[float, float], size: tuple[float, float]) -> Strokes:
    """Moves the strokes to `centre` and scales them to fit `size` (width, height), keeping the aspect ratio."""
    left, top, right, bottom = bounds(strokes)
    scale = min(size[0] / max(right - left, 1e-6), size[1] / max(bottom - top, 1e-6))
    middle = np.array([(left + right) / 2, (top + bottom) / 2])
    return [(stroke - middle) * scale + np.array(centre) for stroke in strokes]
