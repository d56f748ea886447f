"""The requests of the scenarios."""

import pytest

from benchmarks.peers.workload import MIXED_MAX_STEPS, SCENARIOS, ImageRequest, group_by_key, make_scenarios

STRIDE = 32
"""Pixel stride of the embedded checkpoint. A diffusers pipeline would change other sizes."""


def test_scenarios_are_equal_for_every_call() -> None:
    assert make_scenarios(SCENARIOS, 1, 0.5) == make_scenarios(SCENARIOS, 1, 0.5)


def test_rounds_have_different_seeds_and_prompts() -> None:
    first, second = (
        {
            (timed.image.seed, timed.image.prompt)
            for scenario in make_scenarios(SCENARIOS, number, 1)
            for timed in scenario.requests
        }
        for number in (0, 1)
    )
    assert not first & second


@pytest.mark.parametrize("name", SCENARIOS)
def test_smallest_scale_has_requests(name: str) -> None:
    (scenario,) = make_scenarios([name], 0, 0.001)
    assert scenario.requests
    assert scenario.in_flight >= 1


def test_scale_multiplies_the_requests() -> None:
    (once,), (twice,) = (make_scenarios(["equal"], 0, scale) for scale in (1, 2))
    assert len(twice.requests) == 2 * len(once.requests)


def test_mixed_requests_have_sizes_that_every_server_keeps() -> None:
    (scenario,) = make_scenarios(["mixed"], 0, 10)
    images = [timed.image for timed in scenario.requests]
    assert len({(image.width, image.height) for image in images}) > 3
    assert all(side % STRIDE == 0 and 256 <= side <= 1440 for image in images for side in (image.width, image.height))
    assert {image.num_inference_steps for image in images} == set(range(1, MIXED_MAX_STEPS + 1))


@pytest.mark.parametrize("scale", [0.01, 0.1, 0.3, 1])
def test_every_other_client_disconnects_and_the_last_one_stays(scale: float) -> None:
    (scenario,) = make_scenarios(["half_canceled"], 0, scale)
    canceled = [timed.cancel_after_s is not None for timed in scenario.requests]
    assert canceled == [True, False] * (len(canceled) // 2)


def test_requests_are_grouped_by_size_steps_and_outputs_in_order_of_arrival() -> None:
    requests = [
        ImageRequest("a", 0),
        ImageRequest("b", 1, num_inference_steps=2),
        ImageRequest("c", 2),
        ImageRequest("d", 3, width=256),
        ImageRequest("e", 4, num_outputs=2),
        ImageRequest("f", 5, num_inference_steps=2),
    ]
    assert group_by_key(requests) == [[0, 2], [1, 5], [3], [4]]
