"""Plants, animals, sky and landscape as strokes in [-1, 1]."""

import math

from training.drawings.strokes import Rng, Strokes, arc, circle, closed, curve, line


def tree(rng: Rng) -> Strokes:
    crown = [circle(0, -0.4, 0.58), curve((-0.3, -0.5), (-0.1, -0.7), (0.1, -0.6))]
    return [*crown, line((-0.12, 0.16), (-0.16, 1)), line((0.12, 0.16), (0.16, 1)), line((-0.45, 1), (0.45, 1))]


def pine(rng: Rng) -> Strokes:
    tiers = [
        closed((0, top), (-half, bottom), (half, bottom))
        for top, bottom, half in ((-1, -0.4, 0.38), (-0.55, 0.1, 0.52), (-0.1, 0.62, 0.66))
    ]
    return [*tiers, closed((-0.12, 0.62), (-0.12, 1), (0.12, 1), (0.12, 0.62))]


def cat(rng: Rng) -> Strokes:
    ears = [line((-0.68, -0.2), (-0.62, -0.9), (-0.22, -0.55)), line((0.68, -0.2), (0.62, -0.9), (0.22, -0.55))]
    whiskers = [
        line((side * 0.25, y), (side * 0.95, y + tilt)) for side in (-1, 1) for y, tilt in ((0.2, -0.08), (0.32, 0.06))
    ]
    eyes = [circle(-0.27, -0.08, 0.09), circle(0.27, -0.08, 0.09)]
    mouth = [
        closed((-0.08, 0.18), (0.08, 0.18), (0, 0.28)),
        arc(-0.12, 0.3, 0.12, 0.12, 0, 170),
        arc(0.12, 0.3, 0.12, 0.12, 10, 180),
    ]
    return [arc(0, 0.1, 0.74, 0.7, -48, 228), line((-0.22, -0.55), (0.22, -0.55)), *ears, *eyes, *mouth, *whiskers]


def fish(rng: Rng) -> Strokes:
    body = [
        curve((-0.95, 0), (-0.4, -0.75), (0.3, -0.5), (0.6, 0)),
        curve((-0.95, 0), (-0.4, 0.75), (0.3, 0.5), (0.6, 0)),
    ]
    return [
        *body,
        line((0.6, 0), (1, -0.4), (0.9, 0), (1, 0.4), (0.6, 0)),
        circle(-0.58, -0.1, 0.07),
        arc(-0.5, 0, 0.22, 0.3, -55, 55),
        curve((-0.05, 0), (0.15, -0.12), (0.25, 0)),
    ]


def bird(rng: Rng) -> Strokes:
    body = [
        curve((-0.55, -0.2), (-0.5, 0.75), (0.5, 0.6), (0.6, 0)),
        curve((-0.2, -0.45), (0.1, -0.1), (0.4, -0.15), (0.95, -0.25)),
        line((0.95, -0.25), (0.6, 0.02)),
    ]
    return [
        *body,
        arc(-0.42, -0.45, 0.28, 0.28, 110, 370),
        line((-0.68, -0.52), (-1, -0.42), (-0.68, -0.36)),
        circle(-0.46, -0.52, 0.05),
        curve((-0.2, 0.05), (0, 0.5), (0.4, 0.1)),
        line((-0.08, 0.46), (-0.08, 0.9), (-0.25, 0.95)),
        line((0.14, 0.46), (0.14, 0.9), (-0.03, 0.95)),
    ]


def butterfly(rng: Rng) -> Strokes:
    wings = [
        stroke
        for side in (-1, 1)
        for stroke in (
            curve((0, -0.1), (side * 0.35, -1.3), (side * 1.5, -0.8), (0, 0.05)),
            curve((0, 0.05), (side * 1.2, 0.1), (side * 0.8, 1.3), (0, 0.3)),
        )
    ]
    feelers = [curve((0, -0.3), (-0.05, -0.7), (-0.3, -0.85)), curve((0, -0.3), (0.05, -0.7), (0.3, -0.85))]
    return [*wings, arc(0, 0.1, 0.07, 0.45), *feelers]


def snail(rng: Rng) -> Strokes:
    spiral = [arc(0.15, 0, 0.62, 0.62, 110, 400), arc(0.2, 0.06, 0.4, 0.4, 30, 330), arc(0.2, 0.04, 0.2, 0.2, -30, 250)]
    body = [
        line((0.95, 0.66), (-0.6, 0.66)),
        curve((-0.6, 0.66), (-1.05, 0.6), (-0.9, 0), (-0.6, 0.1)),
        curve((-0.6, 0.1), (-0.45, 0.3), (-0.5, 0.4), (-0.35, 0.42)),
        curve((0.95, 0.66), (0.8, 0.5), (0.6, 0.5)),
    ]
    return [*spiral, *body, line((-0.8, 0.1), (-0.95, -0.35)), line((-0.68, 0.06), (-0.62, -0.38))]


def flower(rng: Rng) -> Strokes:
    petals = [
        circle(0.36 * math.cos(a), -0.4 + 0.36 * math.sin(a), 0.21)
        for a in (math.radians(60 * k - 90) for k in range(6))
    ]
    return [
        circle(0, -0.4, 0.16),
        *petals,
        curve((0, 0.18), (0.06, 0.6), (0, 1)),
        curve((0.03, 0.75), (0.2, 0.3), (0.5, 0.4)),
        curve((0.03, 0.75), (0.4, 0.8), (0.5, 0.4)),
    ]


def leaf(rng: Rng) -> Strokes:
    return [
        curve((-0.7, 0.7), (-0.9, -0.6), (0.3, -0.9), (0.9, -0.9)),
        curve((-0.7, 0.7), (0.6, 0.9), (0.9, -0.3), (0.9, -0.9)),
        line((-1, 1), (0.6, -0.6)),
        line((-0.3, 0.3), (-0.3, -0.2)),
        line((0.05, -0.05), (0.05, -0.5)),
        line((-0.3, 0.3), (0.25, 0.3)),
        line((0.05, -0.05), (0.55, -0.05)),
    ]


def mushroom(rng: Rng) -> Strokes:
    return [
        arc(0, 0.05, 0.85, 0.85, 180, 360),
        line((-0.85, 0.05), (0.85, 0.05)),
        curve((-0.25, 0.05), (-0.2, 0.6), (-0.32, 0.95)),
        curve((0.25, 0.05), (0.2, 0.6), (0.32, 0.95)),
        line((-0.32, 0.95), (0.32, 0.95)),
        circle(-0.35, -0.3, 0.12),
        circle(0.1, -0.5, 0.13),
        circle(0.45, -0.2, 0.11),
    ]


def apple(rng: Rng) -> Strokes:
    return [
        curve((0, -0.4), (-1.3, -0.9), (-1, 1.25), (0, 0.85)),
        curve((0, -0.4), (1.3, -0.9), (1, 1.25), (0, 0.85)),
        curve((0, -0.4), (0, -0.7), (0.12, -0.9)),
        curve((0.06, -0.65), (0.3, -1), (0.55, -0.85)),
        curve((0.06, -0.65), (0.4, -0.6), (0.55, -0.85)),
    ]


def sun(rng: Rng) -> Strokes:
    rays = [
        line((0.6 * math.cos(a), 0.6 * math.sin(a)), (math.cos(a), math.sin(a)))
        for a in (math.radians(36 * k) for k in range(10))
    ]
    return [circle(0, 0, 0.45), *rays]


def moon(rng: Rng) -> Strokes:
    return [arc(0, 0, 0.95, 0.95, 60, 300), curve((0.475, -0.82), (-0.35, -0.5), (-0.35, 0.5), (0.475, 0.82))]


def star(rng: Rng) -> Strokes:
    points = [
        (r * math.sin(math.radians(36 * k)), -r * math.cos(math.radians(36 * k))) for k, r in enumerate([1.0, 0.4] * 5)
    ]
    return [closed(*points)]


def heart(rng: Rng) -> Strokes:
    return [
        curve((0, -0.4), (-0.5, -1.35), (-1.6, -0.3), (0, 0.95)),
        curve((0, -0.4), (0.5, -1.35), (1.6, -0.3), (0, 0.95)),
    ]


def cloud(rng: Rng) -> Strokes:
    return [
        arc(-0.55, 0.15, 0.38, 0.32, 90, 270),
        arc(-0.25, -0.2, 0.38, 0.38, 170, 315),
        arc(0.28, -0.18, 0.35, 0.35, 220, 370),
        arc(0.62, 0.15, 0.34, 0.32, -80, 90),
        line((-0.55, 0.47), (0.62, 0.47)),
    ]


def mountain(rng: Rng) -> Strokes:
    return [
        line((-1, 0.7), (-0.3, -0.75), (0.3, 0.5)),
        line((0.05, 0), (0.4, -0.4), (1, 0.7)),
        line((-1, 0.7), (1, 0.7)),
        line((-0.52, -0.3), (-0.38, -0.18), (-0.28, -0.36), (-0.18, -0.18), (-0.09, -0.3)),
    ]


NATURE = (
    tree,
    pine,
    cat,
    fish,
    bird,
    butterfly,
    snail,
    flower,
    leaf,
    mushroom,
    apple,
    sun,
    moon,
    star,
    heart,
    cloud,
    mountain,
)
