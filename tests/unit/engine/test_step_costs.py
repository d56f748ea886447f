"""Estimates of the time of passes from measured times."""

from typing import get_args

import pytest

from serve.engine.step_costs import MAX_AGE, OPTIMISTIC_SHARE, CostKind, RemainingWork, StepCosts

TOKENS = 1024


def _costs(*measurements: tuple[int, int, float], repeats: int = 2) -> StepCosts:
    """Each measurement is the tokens, the images and the seconds of a step."""
    costs = StepCosts()
    for tokens, images, seconds in measurements:
        for _ in range(repeats):
            costs.record("step", tokens, seconds, images)
    return costs


@pytest.mark.parametrize(
    ("measurements", "tokens", "images", "seconds"),
    [
        pytest.param([(100, 1, 2.0)], 100, 1, 2.0, id="measured"),
        pytest.param([(100, 1, 2.0), (100, 3, 5.0)], 100, 3, 5.0, id="measured batch"),
        pytest.param([(100, 1, 2.0)], 50, 1, 1.0, id="smaller sizes in proportion"),
        pytest.param([(100, 1, 2.0), (50, 1, 1.5)], 200, 1, 4.0, id="larger sizes in proportion to the nearest"),
        pytest.param([(100, 1, 2.0), (200, 1, 6.0)], 150, 1, 4.0, id="sizes in between"),
        pytest.param([(100, 1, 2.0)], 100, 3, 2 * (1 + 2 * OPTIMISTIC_SHARE), id="optimistic about batches"),
        pytest.param([(100, 1, 2.0), (100, 2, 3.8), (100, 8, 15.2)], 100, 5, 9.5, id="batches in between"),
        pytest.param([(100, 1, 2.0), (100, 2, 3.8)], 100, 4, 7.4, id="larger batches grow as measured ones"),
        pytest.param([(100, 1, 2.0), (100, 2, 1.8)], 100, 4, 1.8, id="more images are never cheaper"),
        pytest.param([(100, 2, 3.0), (50, 1, 0.1)], 100, 1, 1.5, id="a single image costs at least its share"),
        pytest.param([(100, 2, 3.0), (50, 1, 9.0)], 100, 1, 3.0, id="a single image costs at most a batch"),
    ],
)
def test_estimate(measurements: list[tuple[int, int, float]], tokens: int, images: int, seconds: float) -> None:
    assert _costs(*measurements).estimate_s("step", tokens, images) == pytest.approx(seconds)


def test_estimates_without_measurements_are_in_proportion_to_the_tokens() -> None:
    costs = StepCosts()
    assert costs.estimate_s("step", 2 * TOKENS) == 2 * costs.estimate_s("step", TOKENS) > 0
    assert costs.estimate_s("decode", 2 * TOKENS) == 2 * costs.estimate_s("decode", TOKENS) > 0


def test_kinds_of_work_are_measured_apart() -> None:
    costs = StepCosts()
    for kind, seconds in (("step", 1.0), ("decode", 2.0), ("encode_image", 3.0)):
        costs.record(kind, TOKENS, seconds)  # type: ignore[arg-type]
    assert [costs.estimate_s(kind, TOKENS) for kind in ("step", "decode", "encode_image")] == [1, 2, 3]


def test_slow_first_run_is_replaced_by_the_second() -> None:
    costs = _costs((TOKENS, 1, 13.0), repeats=1)
    assert costs.estimate_s("step", TOKENS) == 13
    costs.record("step", TOKENS, 0.12)
    assert costs.estimate_s("step", TOKENS) == 0.12


def test_slow_first_batch_is_tried_again() -> None:
    costs = _costs((TOKENS, 1, 1.0))
    optimistic_s = costs.estimate_s("step", TOKENS, 2)
    costs.record("step", TOKENS, 30.0, images=2)
    assert costs.estimate_s("step", TOKENS, 2) == optimistic_s
    costs.record("step", TOKENS, 1.9, images=2)
    assert costs.estimate_s("step", TOKENS, 2) == 1.9


def test_one_slow_run_changes_an_estimate_little_and_a_lasting_change_is_followed() -> None:
    costs = _costs((TOKENS, 1, 1.0))
    costs.record("step", TOKENS, 2.0)
    assert 1 < costs.estimate_s("step", TOKENS) < 1.3
    for _ in range(30):
        costs.record("step", TOKENS, 2.0)
    assert costs.estimate_s("step", TOKENS) == pytest.approx(2, rel=0.01)


def test_batch_that_was_slow_long_ago_is_tried_again() -> None:
    costs = _costs((TOKENS, 1, 1.0), (TOKENS, 2, 9.0))
    for _ in range(MAX_AGE):
        costs.record("step", TOKENS, 1.0)
    assert costs.estimate_s("step", TOKENS, 2) == 9
    costs.record("step", TOKENS, 1.0)
    assert costs.estimate_s("step", TOKENS, 2) < 2
    for _ in range(2):
        costs.record("step", TOKENS, 1.2, images=2)
    assert costs.estimate_s("step", TOKENS, 2) == 1.2


@pytest.mark.parametrize(
    ("steps_left", "needs_image_encoding", "max_batch", "seconds"),
    [
        pytest.param((3,), False, 8, 3 * 1 + 5, id="one image"),
        pytest.param((3, 3), False, 8, 3 * 1.4 + 2 * 5, id="a cheap batch"),
        pytest.param((3, 3), False, 1, 6 * 1 + 2 * 5, id="without batches"),
        pytest.param((3, 0), True, 8, 3 * 1 + 2 * 5 + 7, id="one image is not decoded, the input is not encoded"),
    ],
)
def test_remaining_time_adds_steps_decodes_and_encoding(
    steps_left: tuple[int, ...], needs_image_encoding: bool, max_batch: int, seconds: float
) -> None:
    costs = _costs((TOKENS, 1, 1.0), (TOKENS, 2, 1.4))
    costs.record("decode", TOKENS, 5.0)
    costs.record("encode_image", TOKENS, 7.0)
    work = RemainingWork(TOKENS, steps_left, needs_image_encoding)
    assert costs.remaining_s(work, max_batch) == pytest.approx(seconds)


def test_cleared_costs_are_those_of_new_ones() -> None:
    costs, new = StepCosts(), StepCosts()
    for kind in get_args(CostKind):
        costs.record(kind, TOKENS, 30.0)
    costs.clear()
    assert all(costs.estimate_s(kind, TOKENS) == new.estimate_s(kind, TOKENS) for kind in get_args(CostKind))
