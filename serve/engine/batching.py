"""Which images step next: a pure function of what waits and of whose turn it was. Without torch, clocks or threads.

A pass can hold images of one group only: those of the same size and text length. Groups take turns, one pass each, in
the order in which they came, so no size waits for another to run dry. Within a group the oldest requests go first. The
images of one request go in together; while there is no room for all of them, younger requests use it, and give way
when there is.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Generic, TypeVar

Group = TypeVar("Group", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Waiting(Generic[Group]):
    """An image that has steps to go."""

    request: int
    """The smaller, the older."""
    image: int
    group: Group
    """Images of equal groups can share a pass."""


@dataclass(frozen=True, slots=True)
class Turn(Generic[Group]):
    batch: tuple[Waiting[Group], ...]
    """The images that step now, all of one group."""
    groups: tuple[Group, ...]
    """The groups that still have images, the next to be served first; to be handed to the next call."""


def next_turn(waiting: Sequence[Waiting[Group]], groups: Sequence[Group], max_batch: int) -> Turn[Group]:
    """The next pass of at most `max_batch` images; `groups` are those of the turn before."""
    by_age = sorted(waiting, key=attrgetter("request", "image"))
    present = list(dict.fromkeys(image.group for image in by_age))
    if not present:
        return Turn((), ())
    known = [group for group in groups if group in present]
    first, *others = known + [group for group in present if group not in known]
    batch = tuple(_fill([image for image in by_age if image.group == first], max_batch))
    return Turn(batch, (*others, first))


def _fill(by_age: Sequence[Waiting[Group]], room: int) -> Iterator[Waiting[Group]]:
    """Whole requests by age as long as they fit; one that never could fit whole takes what room is left."""
    max_batch = room
    for _, of_request in groupby(by_age, key=attrgetter("request")):
        images = list(of_request)
        if len(images) <= room or len(images) > max_batch:
            yield from images[:room]
            room -= min(room, len(images))
