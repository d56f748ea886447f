from collections import Counter
from collections.abc import Iterable

import pytest

from serve.engine.batching import PendingImage, select_batch


def _waiting(*rows: tuple[int, int, str]) -> list[PendingImage[str]]:
    """Rows of request, number of its images, group."""
    return [PendingImage(request, image, group) for request, images, group in rows for image in range(images)]


def _names(batch: Iterable[PendingImage[str]]) -> list[str]:
    return [f"{image.request}.{image.image}" for image in batch]


@pytest.mark.parametrize(
    ("waiting", "max_batch", "batch"),
    [
        pytest.param([], 4, [], id="nothing waits"),
        pytest.param([(1, 1, "a"), (2, 1, "a")], 4, ["1.0", "2.0"], id="all of a group share a pass"),
        pytest.param([(2, 1, "a"), (1, 1, "a")], 1, ["1.0"], id="the oldest goes first, however they are listed"),
        pytest.param([(1, 1, "a"), (2, 1, "b")], 4, ["1.0"], id="other groups do not share it"),
        pytest.param([(1, 3, "a"), (2, 2, "a")], 4, ["1.0", "1.1", "1.2"], id="a request waits until it fits whole"),
        pytest.param(
            [(1, 3, "a"), (2, 2, "a"), (3, 1, "a")], 4, ["1.0", "1.1", "1.2", "3.0"], id="a younger one uses the room"
        ),
        pytest.param([(1, 4, "a")], 2, ["1.0", "1.1"], id="one larger than a batch goes in parts"),
        pytest.param([(1, 1, "a"), (2, 4, "a")], 3, ["1.0", "2.0", "2.1"], id="and uses any room"),
        pytest.param([(2, 1, "b"), (1, 1, "a")], 4, ["1.0"], id="new groups come in the order of age"),
    ],
)
def test_who_steps(waiting: list[tuple[int, int, str]], max_batch: int, batch: list[str]) -> None:
    assert _names(select_batch(_waiting(*waiting), (), max_batch).images) == batch


@pytest.mark.parametrize(
    ("present", "before", "served", "after"),
    [
        pytest.param(["a"], (), "a", ("a",), id="alone"),
        pytest.param(["a", "b", "c"], ("b", "c", "a"), "b", ("c", "a", "b"), id="who was served goes to the end"),
        pytest.param(["a", "n"], ("a",), "a", ("n", "a"), id="a new group waits behind those that are there"),
        pytest.param(["b"], ("a", "b"), "b", ("b",), id="a group that ran dry is forgotten"),
    ],
)
def test_groups_take_turns(present: list[str], before: tuple[str, ...], served: str, after: tuple[str, ...]) -> None:
    turn = select_batch(_waiting(*((number, 1, group) for number, group in enumerate(present))), before, 8)
    assert {image.key for image in turn.images} == {served}
    assert turn.next_keys == after


def test_the_arguments_are_left_as_they_were() -> None:
    waiting, groups = _waiting((2, 1, "a"), (1, 1, "b")), ["a", "b"]
    select_batch(waiting, groups, 1)
    assert (waiting, groups) == (_waiting((2, 1, "a"), (1, 1, "b")), ["a", "b"])


def test_a_busy_group_does_not_starve_a_single_image() -> None:
    """Twelve images of one size crowd out neither the single one, nor it them."""
    left = Counter({PendingImage(request, 0, "busy"): 6 for request in range(12)})
    left[PendingImage(12, 0, "single")] = 3
    groups: tuple[str, ...] = ()
    served = []
    while left:
        turn = select_batch(list(left), groups, 4)
        groups = turn.next_keys
        served.append(turn.images[0].key)
        left -= Counter(turn.images)
    assert served[:6] == ["busy", "single"] * 3
    assert len(served) == 3 + 12 * 6 / 4


def test_a_stream_of_new_sizes_does_not_starve_an_old_one() -> None:
    groups: tuple[str, ...] = ()
    served = []
    for number in range(1, 9):
        newcomers = [PendingImage(number, 0, f"new {number}")] if number > 1 else []
        turn = select_batch([PendingImage(0, 0, "old"), *newcomers], groups, 4)
        groups = turn.next_keys
        served.append(turn.images[0].key)
    assert served.count("old") >= len(served) // 2


def test_a_request_that_waits_for_room_gets_it_before_younger_ones() -> None:
    """A pair beside three singles of four places; singles keep coming, one for each that ends."""
    steps_left = {(1, 0): 2, (2, 0): 3, (3, 0): 9, (4, 0): 4, (4, 1): 4}
    youngest = 5
    for turn_number in range(6):
        waiting = [PendingImage(request, image, "a") for request, image in steps_left]
        batch = select_batch(waiting, ("a",), 4).images
        if {(4, 0), (4, 1)} <= {(image.request, image.image) for image in batch}:
            assert turn_number == 2
            return
        for image in batch:
            steps_left[image.request, image.image] -= 1
        steps_left = {key: steps for key, steps in steps_left.items() if steps}
        steps_left[youngest, 0] = 5
        youngest += 1
    pytest.fail("the pair never got in")
