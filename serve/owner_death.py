"""Tells whether a process is alive by an object that it owns: Ray reports the object as lost when its owner has died.

A process passes `own_reference()` with a call, and the other side watches it with `Owner`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import ray
from ray.exceptions import ObjectLostError, RayError

CHECK_PERIOD_S = 2.0
READ_TIMEOUT_S = 5.0

OwnerReference = Sequence[Awaitable[object]]
"""A sequence with one reference, or without any. Ray replaces a reference that is itself an argument by its value."""


def own_reference() -> OwnerReference:
    """A reference to an object that this process owns."""
    return [ray.put(None)]


def is_reference(value: object) -> bool:
    """Whether `value` is an `OwnerReference` of Ray's references."""
    return (
        isinstance(value, list | tuple) and len(value) <= 1 and all(isinstance(each, ray.ObjectRef) for each in value)
    )


class Owner:
    """The process that owns the object of a reference. Without a reference, it never dies."""

    def __init__(self, reference: OwnerReference, clock: Callable[[], float] = time.monotonic) -> None:
        self._reference = reference
        self._clock = clock
        self._next_check_s = clock() + CHECK_PERIOD_S

    async def is_dead(self) -> bool:
        """Reads the object at most every `CHECK_PERIOD_S`; False between two reads."""
        now_s = self._clock()
        if not self._reference or now_s < self._next_check_s:
            return False
        self._next_check_s = now_s + CHECK_PERIOD_S
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                await self._reference[0]
        except ObjectLostError:
            return True
        except (RayError, TimeoutError):
            # A slow or damaged object store is no sign of a dead owner.
            return False
        return False

    async def wait_until_dead(self) -> None:
        while not await self.is_dead():
            await asyncio.sleep(CHECK_PERIOD_S)
