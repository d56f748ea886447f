"""A job's way from the engine's thread to the event loop of who asked for it. Knows no Ray and no torch."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from serve.engine.job import Canceled, Done, EngineEvent, Failed, Job
from serve.events import Stepped

if TYPE_CHECKING:
    from serve.engine.engine import Engine
    from serve.engine.task import Ticket

TELL_EVERY_S = 1.0


class Course:
    """Begins when it is made, in a running event loop; iterated once, it gives the job's events as they happen."""

    def __init__(self, engine: "Engine", job: Job) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._pace = Pace()
        self._events: asyncio.Queue[EngineEvent] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._ticket: Ticket = engine.submit(job, self._hear)

    def _hear(self, event: EngineEvent) -> None:
        """Called from the engine's thread."""
        if not isinstance(event, Stepped) or self._pace.tells(event):
            self._loop.call_soon_threadsafe(self._take, event)

    def _take(self, event: EngineEvent) -> None:
        self._events.put_nowait(event)
        if isinstance(event, Done | Failed | Canceled):
            self._ended.set()

    async def __aiter__(self) -> AsyncIterator[EngineEvent]:
        """Every event that is worth telling, the end included."""
        while not (self._ended.is_set() and self._events.empty()):
            yield await self._events.get()

    async def leave(self) -> None:
        """Cancels what is not over, and returns only when the engine has let go of it, however often it is cancelled.

        Until then the caller's slot stays taken: a replica never works on more than its slots say.
        """
        if self._ended.is_set():
            return
        self._engine.cancel(self._ticket)
        while not self._ended.is_set():
            with suppress(asyncio.CancelledError):
                await self._ended.wait()


class Pace:
    """Which steps of each image are worth telling: the first, the last, and between them one every `TELL_EVERY_S`.

    An event on its way out wakes threads of several processes, and nobody reads faster than that.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told_s: dict[int, float] = {}

    def tells(self, step: Stepped) -> bool:
        now_s = self._clock()
        told_s = self._told_s.get(step.image)
        if told_s is not None and now_s - told_s < TELL_EVERY_S and step.done < step.total:
            return False
        self._told_s[step.image] = now_s
        return True
