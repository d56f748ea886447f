"""Sigma schedules for every strength and number of steps."""

import math
from typing import Any

import pytest

from serve.engine.sigmas import make_sigma_schedule

FIXED = {"shift": 1.0, "use_dynamic_shifting": False}
DYNAMIC = {
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "base_shift": 0.5,
    "max_shift": 1.15,
}


def _shifted(sigma: float, tokens: int) -> float:
    """The published time shift of FLUX.1 [dev]."""
    shift = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    return math.exp(shift) / (math.exp(shift) + 1 / sigma - 1)


@pytest.mark.parametrize(
    ("config", "steps", "strength", "first_sigma", "steps_run"),
    [
        pytest.param(FIXED, 4, None, 1.0, 4, id="from noise"),
        pytest.param(FIXED, 4, 1.0, 1.0, 4, id="strength 1 ignores the input image"),
        pytest.param(FIXED, 28, 0.8, 1 - 5 / 28, 23, id="int(28 - 22.4) steps are left out"),
        pytest.param(FIXED, 10, 0.5, 0.5, 5, id="strength 0.5"),
        pytest.param(FIXED, 4, 0.8, 0.75, 3, id="few steps: the first step is left out"),
        pytest.param(FIXED, 2, 0.99, 0.5, 1, id="two steps"),
        pytest.param(FIXED, 1, 0.3, 0.3, 1, id="a single step starts at the strength"),
        pytest.param(FIXED, 1, 1.0, 1.0, 1, id="a single step from noise"),
        pytest.param(FIXED, 28, 0.01, 1 / 28, 1, id="at least one step for any strength"),
        pytest.param(FIXED, 28, 0.0, 0.0, 0, id="strength 0 has no steps"),
        pytest.param(FIXED, 1, 0.0, 0.0, 0, id="strength 0 with one step has no steps"),
        pytest.param(DYNAMIC, 4, None, 1.0, 4, id="dynamic, from noise"),
        pytest.param(DYNAMIC, 10, 0.5, _shifted(0.5, 1024), 5, id="dynamic, strength 0.5"),
        pytest.param(DYNAMIC, 1, 0.3, _shifted(0.3, 1024), 1, id="dynamic, the sigma of a single step is shifted"),
    ],
)
def test_schedule_starts_at_the_sigma_of_its_strength(
    config: dict[str, Any], steps: int, strength: float | None, first_sigma: float, steps_run: int
) -> None:
    schedule = make_sigma_schedule(config, 1024, steps, strength)
    assert schedule.steps == steps_run
    assert schedule.sigmas[0] == pytest.approx(first_sigma, abs=1e-6)
    assert schedule.sigmas[-1] == 0
    assert list(schedule.sigmas) == sorted(schedule.sigmas, reverse=True)


def test_dynamic_shift_grows_with_the_image() -> None:
    small, large = (make_sigma_schedule(DYNAMIC, tokens, 4, None) for tokens in (256, 4096))
    assert small.sigmas[1] == pytest.approx(_shifted(0.75, 256), abs=1e-6)
    assert large.sigmas[1] == pytest.approx(_shifted(0.75, 4096), abs=1e-6)


def test_constant_shift_gives_all_sizes_the_same_schedule() -> None:
    assert make_sigma_schedule(FIXED, 24, 5, None) == make_sigma_schedule(FIXED, 4096, 5, None)


def test_timesteps_and_sigma_deltas_follow_from_the_sigmas() -> None:
    schedule = make_sigma_schedule(DYNAMIC, 1024, 6, 0.7)
    assert schedule.timesteps == pytest.approx([1000 * sigma for sigma in schedule.sigmas[:-1]])
    assert sum(map(schedule.sigma_delta, range(schedule.steps))) == pytest.approx(-schedule.sigmas[0], abs=1e-6)
