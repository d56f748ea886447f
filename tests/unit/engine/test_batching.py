"""Selection of the images of a batch by deadlines and costs, or by turns, and fairness of both."""

from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from serve.engine.batching import (
    DEADLINE_FACTOR,
    BatchCandidate,
    deadline_s,
    select_batch,
    select_batch_by_turns,
)


def _pending(*rows: tuple[int, int, str]) -> list[BatchCandidate[str]]:
    """Each row is the number of a request, the number of its images, and their key."""
    return [BatchCandidate(request, image, key) for request, images, key in rows for image in range(images)]


def _names(batch: Iterable[BatchCandidate[str]]) -> list[str]:
    return [f"{image.request_number}.{image.image_index}" for image in batch]


def _linear(cost_of_further_image: float) -> Callable[[str, int], float]:
    """Seconds of a pass if the first image takes one second."""
    return lambda key, images: 1 + cost_of_further_image * (images - 1)


CHEAP_BATCHES, EXPENSIVE_BATCHES = _linear(0.5), _linear(1.2)
EQUAL_BATCHES = _linear(1.0)


def _due(*rows: tuple[int, int, str, float]) -> list[BatchCandidate[str]]:
    """Each row is the number of a request, the number of its images, their key, and the deadline."""
    return [
        BatchCandidate(request, image, key, deadline_s=due_s)
        for request, images, key, due_s in rows
        for image in range(images)
    ]


@pytest.mark.parametrize(
    ("pending", "step_s", "max_batch", "batch"),
    [
        pytest.param([], CHEAP_BATCHES, 4, [], id="nothing pending"),
        pytest.param([(1, 1, "a", 9), (2, 1, "b", 8)], CHEAP_BATCHES, 4, ["2.0"], id="the earliest deadline is first"),
        pytest.param([(2, 1, "a", 8), (1, 1, "b", 8)], CHEAP_BATCHES, 4, ["1.0"], id="of equal ones the oldest"),
        pytest.param(
            [(1, 1, "a", 9), (2, 1, "a", 8), (3, 1, "a", 7)], CHEAP_BATCHES, 2, ["3.0", "2.0"], id="others by deadline"
        ),
        pytest.param([(1, 1, "a", 1), (2, 1, "a", 2)], EQUAL_BATCHES, 4, ["1.0"], id="no gain, no common batch"),
        pytest.param([(1, 3, "a", 1)], EQUAL_BATCHES, 4, ["1.0", "1.1", "1.2"], id="a request enters as a whole"),
        pytest.param([(1, 3, "a", 1)], EXPENSIVE_BATCHES, 4, ["1.0"], id="unless its images are cheaper apart"),
        pytest.param([(1, 3, "a", 1), (2, 2, "a", 2)], CHEAP_BATCHES, 4, ["1.0", "1.1", "1.2"], id="no room for all"),
        pytest.param(
            [(1, 3, "a", 1), (2, 2, "a", 2), (3, 1, "a", 3)],
            CHEAP_BATCHES,
            4,
            ["1.0", "1.1", "1.2", "3.0"],
            id="a later request fits",
        ),
        pytest.param([(1, 4, "a", 1)], CHEAP_BATCHES, 2, ["1.0", "1.1"], id="a request larger than max_batch is split"),
        pytest.param([(1, 4, "a", 1), (2, 1, "a", 2)], CHEAP_BATCHES, 1, ["1.0"], id="without batches"),
        pytest.param([(1, 1, "a", 1), (2, 1, "b", 2)], CHEAP_BATCHES, 4, ["1.0"], id="other keys are not in the batch"),
    ],
)
def test_batch_is_chosen_by_deadline_and_cost(
    pending: list[tuple[int, int, str, float]], step_s: Callable[[str, int], float], max_batch: int, batch: list[str]
) -> None:
    assert _names(select_batch(_due(*pending), step_s, max_batch)) == batch


def test_image_with_the_fewest_steps_left_advances_first_where_images_run_apart() -> None:
    pending = [BatchCandidate(1, 0, "a", steps_left=4), BatchCandidate(1, 1, "a", steps_left=2)]
    assert _names(select_batch(pending, EXPENSIVE_BATCHES, 4)) == ["1.1"]


def test_batch_grows_while_it_is_cheaper_than_apart() -> None:
    """Four images cost 2.5 steps, and each further one as much as alone."""

    def step_s(key: str, images: int) -> float:
        return 1 + 0.5 * (min(images, 4) - 1) + max(0, images - 4)

    pending = _due(*((number, 1, "a", number) for number in range(8)))
    batch = select_batch(pending, step_s, 8)
    assert len(batch) == 8
    alone_is_cheaper = select_batch(pending, lambda key, images: images + 0.5 * (images > 2) - 0.5 * (images == 2), 8)
    assert len(alone_is_cheaper) == 2


def test_deadline_is_the_arrival_and_a_multiple_of_the_remaining_work() -> None:
    assert deadline_s(10.0, 4.0) - 10 == DEADLINE_FACTOR * 4
    assert deadline_s(10.0, 1.0) < deadline_s(10.0, 2.0) < deadline_s(11.0, 2.0)


def test_stream_of_short_requests_does_not_starve_a_long_one() -> None:
    """Every second brings a request of one second, which alone keeps the device busy."""
    work_s, ended_s = {0: 20.0}, {}
    arrivals_s = {0: 0.0}
    for now_s in range(1, 200):
        arrivals_s[now_s], work_s[now_s] = now_s - 1.0, 1.0
        pending = [
            BatchCandidate(number, 0, str(number), deadline_s=deadline_s(arrivals_s[number], left_s))
            for number, left_s in work_s.items()
        ]
        (image,) = select_batch(pending, EQUAL_BATCHES, 4)
        work_s[image.request_number] -= 1
        if not work_s[image.request_number]:
            del work_s[image.request_number]
            ended_s[image.request_number] = now_s
    assert ended_s[0] <= DEADLINE_FACTOR * 20 + 20
    assert len(work_s) <= 20


@pytest.mark.parametrize(
    ("pending", "max_batch", "batch"),
    [
        pytest.param([], 4, [], id="nothing pending"),
        pytest.param([(1, 1, "a"), (2, 1, "a")], 4, ["1.0", "2.0"], id="images with equal keys share a batch"),
        pytest.param([(2, 1, "a"), (1, 1, "a")], 1, ["1.0"], id="the oldest request goes first in any order"),
        pytest.param([(1, 1, "a"), (2, 1, "b")], 4, ["1.0"], id="other keys are not in the batch"),
        pytest.param([(1, 3, "a"), (2, 2, "a")], 4, ["1.0", "1.1", "1.2"], id="a request waits until all images fit"),
        pytest.param(
            [(1, 3, "a"), (2, 2, "a"), (3, 1, "a")], 4, ["1.0", "1.1", "1.2", "3.0"], id="a younger request fits"
        ),
        pytest.param([(1, 4, "a")], 2, ["1.0", "1.1"], id="a request larger than max_batch is split"),
        pytest.param([(1, 1, "a"), (2, 4, "a")], 3, ["1.0", "2.0", "2.1"], id="a split request uses the rest"),
        pytest.param([(2, 1, "b"), (1, 1, "a")], 4, ["1.0"], id="new keys are ordered by age"),
    ],
)
def test_batch_by_turns(pending: list[tuple[int, int, str]], max_batch: int, batch: list[str]) -> None:
    assert _names(select_batch_by_turns(_pending(*pending), (), max_batch).candidates) == batch


@pytest.mark.parametrize(
    ("present", "keys", "selected", "next_keys"),
    [
        pytest.param(["a"], (), "a", ("a",), id="single key"),
        pytest.param(["a", "b", "c"], ("b", "c", "a"), "b", ("c", "a", "b"), id="the selected key moves to the end"),
        pytest.param(["a", "n"], ("a",), "a", ("n", "a"), id="a new key waits behind the present ones"),
        pytest.param(["b"], ("a", "b"), "b", ("b",), id="a key without images is dropped"),
    ],
)
def test_keys_take_turns(present: list[str], keys: tuple[str, ...], selected: str, next_keys: tuple[str, ...]) -> None:
    batch = select_batch_by_turns(_pending(*((number, 1, key) for number, key in enumerate(present))), keys, 8)
    assert {image.key for image in batch.candidates} == {selected}
    assert batch.next_keys == next_keys


def test_arguments_are_not_modified() -> None:
    pending, keys = _pending((2, 1, "a"), (1, 1, "b")), ["a", "b"]
    select_batch_by_turns(pending, keys, 1)
    select_batch(pending, CHEAP_BATCHES, 1)
    assert (pending, keys) == (_pending((2, 1, "a"), (1, 1, "b")), ["a", "b"])


def test_busy_key_does_not_starve_a_single_image() -> None:
    """A single image with its own key takes turns with twelve images of another key."""
    steps_left = Counter({BatchCandidate(request, 0, "busy"): 6 for request in range(12)})
    steps_left[BatchCandidate(12, 0, "single")] = 3
    keys: tuple[str, ...] = ()
    selected_keys = []
    while steps_left:
        batch = select_batch_by_turns(list(steps_left), keys, 4)
        keys = batch.next_keys
        selected_keys.append(batch.candidates[0].key)
        steps_left -= Counter(batch.candidates)
    assert selected_keys[:6] == ["busy", "single"] * 3
    assert len(selected_keys) == 3 + 12 * 6 / 4


def test_stream_of_new_keys_does_not_starve_an_old_key() -> None:
    keys: tuple[str, ...] = ()
    selected_keys = []
    for number in range(1, 9):
        new_images = [BatchCandidate(number, 0, f"new {number}")] if number > 1 else []
        batch = select_batch_by_turns([BatchCandidate(0, 0, "old"), *new_images], keys, 4)
        keys = batch.next_keys
        selected_keys.append(batch.candidates[0].key)
    assert selected_keys.count("old") >= len(selected_keys) // 2


def test_waiting_request_enters_a_batch_before_younger_requests() -> None:
    """Request 4 has two images and waits for three single images. Each ended request is replaced by a younger one."""
    steps_left = {(1, 0): 2, (2, 0): 3, (3, 0): 9, (4, 0): 4, (4, 1): 4}
    youngest = 5
    for iteration in range(6):
        pending = [BatchCandidate(request, image, "a") for request, image in steps_left]
        batch = select_batch_by_turns(pending, ("a",), 4).candidates
        if {(4, 0), (4, 1)} <= {(image.request_number, image.image_index) for image in batch}:
            assert iteration == 2
            return
        for image in batch:
            steps_left[image.request_number, image.image_index] -= 1
        steps_left = {key: steps for key, steps in steps_left.items() if steps}
        steps_left[youngest, 0] = 5
        youngest += 1
    pytest.fail("request 4 never entered a batch")
