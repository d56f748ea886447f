"""Man-made objects as strokes in [-1, 1]."""

import math

from training.drawings.strokes import Rng, Strokes, arc, circle, closed, curve, line


def house(rng: Rng) -> Strokes:
    side = rng.choice([-1, 1])
    door = closed((side * 0.15, 0.95), (side * 0.15, 0.35), (side * 0.5, 0.35), (side * 0.5, 0.95))
    left, right = sorted((-side * 0.55, -side * 0.15))
    window = [
        closed((left, 0.2), (right, 0.2), (right, 0.58), (left, 0.58)),
        line(((left + right) / 2, 0.2), ((left + right) / 2, 0.58)),
        line((left, 0.39), (right, 0.39)),
    ]
    chimney = line((side * 0.4, -0.55), (side * 0.4, -0.9), (side * 0.62, -0.9), (side * 0.62, -0.35))
    return [
        closed((-0.75, -0.1), (0.75, -0.1), (0.75, 0.95), (-0.75, 0.95)),
        line((-0.95, -0.1), (0, -0.95), (0.95, -0.1), (-0.95, -0.1)),
        door,
        *window,
        chimney,
    ]


def boat(rng: Rng) -> Strokes:
    return [
        closed((-0.95, 0.45), (0.95, 0.45), (0.6, 0.9), (-0.6, 0.9)),
        line((0, 0.45), (0, -0.95)),
        closed((0.1, -0.85), (0.1, 0.25), (0.8, 0.25)),
        closed((-0.1, -0.6), (-0.1, 0.25), (-0.6, 0.25)),
    ]


def cup(rng: Rng) -> Strokes:
    steam = [curve((x, -0.5), (x - 0.15, -0.65), (x + 0.15, -0.8), (x, -0.95)) for x in (-0.35, -0.05, 0.25)]
    return [
        arc(-0.05, -0.3, 0.6, 0.12),
        curve((-0.65, -0.3), (-0.6, 0.9), (-0.35, 0.8), (-0.05, 0.8)),
        curve((0.55, -0.3), (0.5, 0.9), (0.25, 0.8), (-0.05, 0.8)),
        arc(0.58, 0.1, 0.34, 0.28, -90, 100),
        *steam,
    ]


def bicycle(rng: Rng) -> Strokes:
    return [
        circle(-0.58, 0.3, 0.4),
        circle(0.58, 0.3, 0.4),
        line((-0.58, 0.3), (-0.25, -0.25), (0.38, -0.25), (-0.02, 0.3), (-0.58, 0.3)),
        line((-0.02, 0.3), (-0.3, -0.4)),
        line((-0.48, -0.42), (-0.12, -0.42)),
        line((0.58, 0.3), (0.32, -0.5), (0.6, -0.55)),
    ]


def key(rng: Rng) -> Strokes:
    return [
        circle(-0.6, 0, 0.38),
        circle(-0.6, 0, 0.16),
        line((-0.22, 0), (1, 0), (1, 0.32)),
        line((0.72, 0), (0.72, 0.26)),
        line((0.45, 0), (0.45, 0.2)),
    ]


def car(rng: Rng) -> Strokes:
    body = line(
        (-0.95, 0.35),
        (-0.95, 0),
        (-0.55, -0.08),
        (-0.3, -0.45),
        (0.35, -0.45),
        (0.62, -0.05),
        (0.95, 0.05),
        (0.95, 0.35),
        (-0.95, 0.35),
    )
    windows = [
        closed((-0.38, -0.08), (-0.22, -0.34), (0, -0.34), (0, -0.08)),
        closed((0.1, -0.08), (0.1, -0.34), (0.3, -0.34), (0.45, -0.08)),
    ]
    return [body, *windows, circle(-0.5, 0.38, 0.2), circle(0.5, 0.38, 0.2)]


def umbrella(rng: Rng) -> Strokes:
    scallops = [arc(x, 0, 0.235, 0.14, 180, 360) for x in (-0.705, -0.235, 0.235, 0.705)]
    return [
        arc(0, 0, 0.94, 0.85, 180, 360),
        *scallops,
        line((0, -0.95), (0, 0.75)),
        arc(-0.16, 0.75, 0.16, 0.2, 0, 180),
    ]


def balloon(rng: Rng) -> Strokes:
    return [
        arc(0, -0.35, 0.52, 0.62),
        closed((0, 0.27), (-0.09, 0.38), (0.09, 0.38)),
        curve((0, 0.38), (-0.25, 0.6), (0.25, 0.75), (0, 1)),
        arc(-0.18, -0.5, 0.18, 0.25, 180, 260),
    ]


def candle(rng: Rng) -> Strokes:
    flame = [
        curve((0, -0.95), (-0.4, -0.5), (-0.15, -0.35), (0, -0.35)),
        curve((0, -0.95), (0.4, -0.5), (0.15, -0.35), (0, -0.35)),
    ]
    return [
        closed((-0.22, -0.15), (0.22, -0.15), (0.22, 0.7), (-0.22, 0.7)),
        line((0, -0.15), (0, -0.45)),
        *flame,
        closed((-0.6, 0.7), (0.6, 0.7), (0.4, 0.95), (-0.4, 0.95)),
    ]


def clock(rng: Rng) -> Strokes:
    marks = [
        line((0.76 * math.cos(a), 0.76 * math.sin(a)), (0.88 * math.cos(a), 0.88 * math.sin(a)))
        for a in (math.radians(90 * k) for k in range(4))
    ]
    hour, minute = (math.radians(a) for a in rng.uniform(-180, 180, 2))
    return [
        circle(0, 0, 0.95),
        *marks,
        line((0, 0), (0.38 * math.cos(hour), 0.38 * math.sin(hour))),
        line((0, 0), (0.65 * math.cos(minute), 0.65 * math.sin(minute))),
    ]


def lamp(rng: Rng) -> Strokes:
    return [
        closed((-0.3, -0.9), (0.3, -0.9), (0.65, -0.1), (-0.65, -0.1)),
        line((0, -0.1), (0, 0.8)),
        arc(0, 0.95, 0.45, 0.17, 180, 360),
        line((-0.45, 0.95), (0.45, 0.95)),
    ]


def hat(rng: Rng) -> Strokes:
    return [
        arc(0, 0.55, 0.98, 0.24),
        curve((-0.5, 0.4), (-0.45, -0.4), (-0.5, -0.65)),
        curve((0.5, 0.4), (0.45, -0.4), (0.5, -0.65)),
        arc(0, -0.65, 0.5, 0.12),
        curve((-0.48, 0.15), (0, 0.32), (0.48, 0.15)),
    ]


def kite(rng: Rng) -> Strokes:
    return [
        closed((0.2, -1), (0.75, -0.35), (0.1, 0.45), (-0.35, -0.5)),
        line((0.2, -1), (0.1, 0.45)),
        line((0.75, -0.35), (-0.35, -0.5)),
        curve((0.1, 0.45), (-0.3, 0.6), (0.1, 0.85), (-0.5, 1)),
        closed((-0.22, 0.62), (-0.02, 0.8), (-0.02, 0.62), (-0.22, 0.8)),
    ]


def ladder(rng: Rng) -> Strokes:
    rungs = [line((-0.32, y), (0.32, y)) for y in (-0.7, -0.35, 0, 0.35, 0.7)]
    return [line((-0.32, -1), (-0.32, 1)), line((0.32, -1), (0.32, 1)), *rungs]


def chair(rng: Rng) -> Strokes:
    return [
        closed((-0.5, 0.1), (0.35, 0.1), (0.6, 0.3), (-0.25, 0.3)),
        line((-0.5, 0.85), (-0.5, -0.95), (0.35, -0.95), (0.35, 0.1)),
        line((-0.25, 0.3), (-0.25, 1)),
        line((0.6, 0.3), (0.6, 1)),
        line((-0.5, -0.6), (0.35, -0.6)),
        line((-0.5, -0.25), (0.35, -0.25)),
    ]


def face(rng: Rng) -> Strokes:
    return [
        circle(0, 0, 0.95),
        circle(-0.33, -0.25, 0.08),
        circle(0.33, -0.25, 0.08),
        arc(0, 0.15, 0.5, 0.42, 15, 165),
        line((0, -0.1), (-0.06, 0.12), (0.04, 0.14)),
    ]


OBJECTS = (house, boat, cup, bicycle, key, car, umbrella, balloon, candle, clock, lamp, hat, kite, ladder, chair, face)
