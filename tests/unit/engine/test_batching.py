"""Selection of the images of a batch, and fairness between keys."""

from collections import Counter
from collections.abc import Iterable

import pytest

from serve.engine.batching import BatchCandidate, select_batch


def _pending(*rows: tuple[int, int, str]) -> list[BatchCandidate[str]]:
    """Each row is the number of a request, the number of its images, and their key."""
    return [BatchCandidate(request, image, key) for request, images, key in rows for image in range(images)]


def _names(batch: Iterable[BatchCandidate[str]]) -> list[str]:
    return [f"{image.request_number}.{image.image_index}" for image in batch]


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
def test_select_batch_returns_images(pending: list[tuple[int, int, str]], max_batch: int, batch: list[str]) -> None:
    assert _names(select_batch(_pending(*pending), (), max_batch).candidates) == batch


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
    batch = select_batch(_pending(*((number, 1, key) for number, key in enumerate(present))), keys, 8)
    assert {image.key for image in batch.candidates} == {selected}
    assert batch.next_keys == next_keys


def test_arguments_are_not_modified() -> None:
    pending, keys = _pending((2, 1, "a"), (1, 1, "b")), ["a", "b"]
    select_batch(pending, keys, 1)
    assert (pending, keys) == (_pending((2, 1, "a"), (1, 1, "b")), ["a", "b"])


def test_busy_key_does_not_starve_a_single_image() -> None:
    """A single image with its own key takes turns with twelve images of another key."""
    steps_left = Counter({BatchCandidate(request, 0, "busy"): 6 for request in range(12)})
    steps_left[BatchCandidate(12, 0, "single")] = 3
    keys: tuple[str, ...] = ()
    selected_keys = []
    while steps_left:
        batch = select_batch(list(steps_left), keys, 4)
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
        batch = select_batch([BatchCandidate(0, 0, "old"), *new_images], keys, 4)
        keys = batch.next_keys
        selected_keys.append(batch.candidates[0].key)
    assert selected_keys.count("old") >= len(selected_keys) // 2


def test_waiting_request_enters_a_batch_before_younger_requests() -> None:
    """Request 4 has two images and waits for three single images. Each ended request is replaced by a younger one."""
    steps_left = {(1, 0): 2, (2, 0): 3, (3, 0): 9, (4, 0): 4, (4, 1): 4}
    youngest = 5
    for iteration in range(6):
        pending = [BatchCandidate(request, image, "a") for request, image in steps_left]
        batch = select_batch(pending, ("a",), 4).candidates
        if {(4, 0), (4, 1)} <= {(image.request_number, image.image_index) for image in batch}:
            assert iteration == 2
            return
        for image in batch:
            steps_left[image.request_number, image.image_index] -= 1
        steps_left = {key: steps for key, steps in steps_left.items() if steps}
        steps_left[youngest, 0] = 5
        youngest += 1
    pytest.fail("request 4 never entered a batch")
