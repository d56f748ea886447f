"""[dev] and [schnell] as students of the base: what each begins as, what it is told, and what the base shows it.

Knows nothing of training loops.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from training.flow import Place, Text, guided, schedule, shift, training_times
from training.import_weights import ahead_file, go_ahead
from training.rollout import Stretch, even_marks, warped_marks
from training.transformer import build

GUIDANCE_FROM, GUIDANCE_TO = 1.0, 7.0
DEV_STEPS = 10
"""Of a journey of [dev]; drawing takes 28."""
SCHNELL_STEPS = 4
SCHNELL_GUIDANCE = 3.0
"""What [schnell] has built in."""
SUBSTEPS = 2
"""Steps of the base that one of [schnell] takes the place of: each costs two passes of the base."""


def dev_from(base: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """The base with a guidance embedding that says nothing yet."""
    model = build(guided=True)
    model.load_state_dict(base.state_dict(), strict=False)
    torch.nn.init.zeros_(model.time_text_embed.guidance_embedder.linear_2.weight)
    torch.nn.init.zeros_(model.time_text_embed.guidance_embedder.linear_2.bias)
    return model


def schnell_from(base: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """The base itself to begin with; all that [schnell] does otherwise it learns."""
    model = build()
    model.load_state_dict(base.state_dict())
    return model


def begun(kind: str, base: FluxTransformer2DModel, runs: Path) -> FluxTransformer2DModel:
    """A student of this base, with what an earlier one knew beyond its base if that was taken up."""
    student = dev_from(base) if kind == "dev" else schnell_from(base)
    if ahead_file(runs, kind).exists():
        go_ahead(base, student, torch.load(ahead_file(runs, kind), weights_only=True))
    return student


@dataclass(frozen=True, slots=True)
class Given:
    """What is said of a batch of pictures, what nothing said would be, and how far the first is to lead."""

    words: Text
    empty: Text
    place: Place
    scale: torch.Tensor
    """(batch,)."""


@dataclass(frozen=True, slots=True)
class Course:
    """How a student is led."""

    scales: Callable[[int], torch.Tensor]
    """Guidances for so many pictures."""
    marks: Callable[[int, int], torch.Tensor]
    """Times of a journey of so many pictures of so many tokens."""
    begun: Callable[[int, int], torch.Tensor]
    """The same from anywhere, in one stretch: (pictures, 2)."""
    wanted: Callable[[FluxTransformer2DModel, Stretch, Given], torch.Tensor]
    """The velocity that the base shows."""


def dev_scales(count: int) -> torch.Tensor:
    """Of the whole span, half of them below 3.2: what is mostly asked for."""
    return GUIDANCE_FROM + (GUIDANCE_TO - GUIDANCE_FROM) * torch.rand(count) ** 1.5


def dev_wanted(base: FluxTransformer2DModel, stretch: Stretch, given: Given) -> torch.Tensor:
    """Two passes of the base."""
    return guided(base, stretch.latents, stretch.begin, given.words, given.empty, given.place, given.scale)


def schnell_wanted(base: FluxTransformer2DModel, stretch: Stretch, given: Given) -> torch.Tensor:
    """Straight to where the guided base stands at the end, by steps of its own."""
    latents, begin, way = stretch.latents, stretch.begin, stretch.end - stretch.begin
    for k in range(SUBSTEPS):
        now = begin + way * k / SUBSTEPS
        step = guided(base, latents, now, given.words, given.empty, given.place, given.scale)
        latents = latents + (way / SUBSTEPS)[:, None, None] * step
    return (latents - stretch.latents) / way[:, None, None]


def _dev_begun(count: int, tokens: int) -> torch.Tensor:
    times = training_times(count, shift(tokens))
    return torch.stack([times, torch.zeros_like(times)], 1)


def _schnell_begun(count: int, _: int) -> torch.Tensor:
    marks, stretch = schedule(SCHNELL_STEPS, 1.0), torch.randint(SCHNELL_STEPS, (count,))
    return torch.stack([marks[stretch], marks[stretch + 1]], 1)


COURSES = {
    "dev": Course(
        dev_scales, lambda count, tokens: warped_marks(count, DEV_STEPS, shift(tokens)), _dev_begun, dev_wanted
    ),
    "schnell": Course(
        lambda count: torch.full((count,), SCHNELL_GUIDANCE),
        lambda count, _: even_marks(count, SCHNELL_STEPS),
        _schnell_begun,
        schnell_wanted,
    ),
}
