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

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class PendingImage(Generic[Key]):
    """An image that has steps to go."""

    request: int
    """The smaller, the older."""
    image: int
    key: Key
    """Images of equal groups can share a pass."""


@dataclass(frozen=True, slots=True)
class ScheduledBatch(Generic[Key]):
    images: tuple[PendingImage[Key], ...]
    """The images that step now, all of one group."""
    next_keys: tuple[Key, ...]
    """The groups that still have images, the next to be served first; to be handed to the next call."""


def select_batch(waiting: Sequence[PendingImage[Key]], groups: Sequence[Key], max_batch: int) -> ScheduledBatch[Key]:
    """The next pass of at most `max_batch` images; `groups` are those of the turn before."""
    by_age = sorted(waiting, key=attrgetter("request", "image"))
    present = list(dict.fromkeys(image.key for image in by_age))
    if not present:
        return ScheduledBatch((), ())
    known = [group for group in groups if group in present]
    first, *others = known + [group for group in present if group not in known]
    batch = tuple(_fill([image for image in by_age if image.key == first], max_batch))
    return ScheduledBatch(batch, (*others, first))


def _fill(by_age: Sequence[PendingImage[Key]], room: int) -> Iterator[PendingImage[Key]]:
    """Whole requests by age as long as they fit; one that never could fit whole takes what room is left."""
    max_batch = room
    for _, of_request in groupby(by_age, key=attrgetter("request")):
        images = list(of_request)
        if len(images) <= room or len(images) > max_batch:
            yield from images[:room]
            room -= min(room, len(images))
