"""Passes the events of a request from the engine's thread to an event loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Protocol

from serve.engine.request import EngineEvent, FinalEvent, GenerationRequest, Listener
from serve.engine.request_state import CancelToken
from serve.events import Preview, StepDone

STEP_EVENT_PERIOD_S = 1.0


class RequestQueue(Protocol):
    """What the stream needs of `Engine`."""

    def submit(self, request: GenerationRequest, listener: Listener) -> CancelToken: ...

    def cancel(self, cancel_token: CancelToken) -> None: ...


class EventStream:
    """Events of one request, passed from the engine's thread to the event loop that created the stream."""

    def __init__(self, engine: RequestQueue, request: GenerationRequest) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._throttle = StepThrottle()
        self._events: asyncio.Queue[EngineEvent | Preview] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._cancel_token = engine.submit(request, self._on_event)

    def _on_event(self, event: EngineEvent) -> None:
        """Called on the engine's thread."""
        if not isinstance(event, StepDone) or self._throttle.should_emit(event):
            self._loop.call_soon_threadsafe(self._put, event)

    def add(self, preview: Preview) -> None:
        """Adds a preview to the events, unless the final one was there before. Called on the event loop."""
        if not self._ended.is_set():
            self._events.put_nowait(preview)

    def _put(self, event: EngineEvent) -> None:
        self._events.put_nowait(event)
        if isinstance(event, FinalEvent):
            self._ended.set()

    async def __aiter__(self) -> AsyncIterator[EngineEvent | Preview]:
        """The events up to the final one, with throttled steps. Iterate once."""
        while not (self._ended.is_set() and self._events.empty()):
            yield await self._events.get()

    async def cancel(self) -> None:
        """Cancels the request and returns when the engine has dropped it, however often the caller is cancelled.

        Until then the caller keeps its slot in the replica, so a replica never works on more requests than it has
        slots.
        """
        if self._ended.is_set():
            return
        self._engine.cancel(self._cancel_token)
        while not self._ended.is_set():
            with suppress(asyncio.CancelledError):
                await self._ended.wait()


class StepThrottle:
    """Selects the steps that are reported: the first and the last of each image, and one per `STEP_EVENT_PERIOD_S`.

    Each event wakes threads of several processes on its way to the caller.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._emitted_s: dict[int, float] = {}

    def should_emit(self, step: StepDone) -> bool:
        now_s = self._clock()
        emitted_s = self._emitted_s.get(step.index)
        if emitted_s is not None and now_s - emitted_s < STEP_EVENT_PERIOD_S and step.step < step.total:
            return False
        self._emitted_s[step.index] = now_s
        return True
