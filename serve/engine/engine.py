"""The engine: accepts requests from any thread and runs them on one thread that owns the device."""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import torch

from serve.engine.checkpoint import Checkpoint
from serve.engine.request import Canceled, Completed, EngineEvent, Failed, GenerationRequest, Listener
from serve.engine.request_state import CancelToken, RequestState
from serve.engine.scheduler import DeviceCall, Scheduler
from serve.engine.watchdog import EngineHealth, Watchdog
from serve.errors import EngineFailed, NotReady
from serve.events import StepDone
from serve.model_specs import Size
from serve.plan import Plan
from serve.settings import PoolSettings

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine has done since it was made."""

    batches: int
    """Times that the transformer ran."""
    image_steps: int
    """Steps of single images in those passes."""
    images: int
    """Images of jobs that were submitted and have not ended."""
    lora_loads: int
    """LoRAs that were copied to the device."""

    @property
    def mean_batch(self) -> float:
        return self.image_steps / self.batches if self.batches else 0.0


class Engine:
    """Draws the jobs it is given, many images at once, one step at a time."""

    def __init__(self, checkpoint: Checkpoint, pool: PoolSettings) -> None:
        self._guided = checkpoint.guidance_embeds
        self._threads = pool.num_threads
        self._watch = Watchdog()
        self._loop = Scheduler(checkpoint, pool, self._watch)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._running = False
        self._arrived: list[RequestState] = []
        self._errands: list[DeviceCall] = []

    def start(self) -> None:
        self._running = True
        self._thread.start()

    def stop(self) -> None:
        """Ends after the piece of work at hand; jobs that have not ended fail. Returns when the thread is gone."""
        with self._changed:
            self._running = False
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def warm_up(self, sizes: Sequence[Size]) -> None:
        """Draws one picture of each size in every way, and learns how long each kind of work takes.

        Returns when all are drawn. Raises the error that a user would have met.
        """
        with self._watch.warm_up():
            for size in sizes:
                self._draw(_warm_up_job(size, self._guided))

    def submit(self, job: GenerationRequest, listener: Listener) -> CancelToken:
        """Queues a job. `listener` is called from the engine's thread with its events, in order, up to its end.

        Raises NotReady unless the engine runs, and ValueError for a plan of another variant.
        """
        if self._guided and job.plan.guidance is None:
            raise ValueError("this checkpoint needs a plan with guidance")
        with self._changed:
            self._check_running()
            task = RequestState(next(self._numbers), job, listener)
            self._arrived.append(task)
            self._changed.notify()
        return task.cancel_token

    def stream(self, job: GenerationRequest) -> "EventStream":
        """Submits a job from a running event loop and returns its events. Raises as `submit` does."""
        return EventStream(self, job)

    def cancel(self, ticket: CancelToken) -> None:
        """Lets a job go before its next step; its last event is `Canceled`, unless it has ended meanwhile."""
        ticket.cancelled = True

    def run_on_device(self, action: Callable[[], Result]) -> "Future[Result]":
        """Has the thread that owns the device call `action` between two steps. Raises NotReady unless it runs."""
        future: Future[Result] = Future()
        with self._changed:
            self._check_running()
            self._errands.append((future, action))
            self._changed.notify()
        return future

    @property
    def health(self) -> EngineHealth:
        """For a health check, from any thread."""
        return self._watch.health(alive=self._thread.is_alive() and not self._loop.device_lost)

    @property
    def stats(self) -> EngineStats:
        with self._changed:
            arrived = sum(len(task.request.plan.seeds) for task in self._arrived)
            loop = self._loop
            return EngineStats(loop.passes, loop.image_steps, loop.images + arrived, loop.loras.loads)

    def _check_running(self) -> None:
        if not self._running:
            raise NotReady("the image engine is not running")

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        while self._take_in():
            try:
                self._loop.step()
            except Exception:
                _log.exception("a round of the engine failed, and all jobs with it")
                self._loop.fail_all(EngineFailed())
        self._loop.fail_all(EngineFailed("the service is stopping; send the request again"))

    def _take_in(self) -> bool:
        """Waits until there is something to do. False if there never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._arrived or self._errands or self._loop.busy or not self._running)
            self._loop.add(self._arrived, self._errands)
            self._arrived, self._errands = [], []
            return self._running

    def _draw(self, job: GenerationRequest) -> None:
        """Draws a job and drops its pictures. Raises its error."""
        events: SimpleQueue[EngineEvent] = SimpleQueue()
        self.submit(job, events.put)
        while not isinstance(event := events.get(), Completed | Failed | Canceled):
            pass
        if isinstance(event, Failed):
            raise event.error


def _warm_up_job(size: Size, guided: bool) -> GenerationRequest:
    """One step of an inpainting goes everywhere: text, picture in, transformer, picture out."""
    width, height = size
    plan = Plan(
        pool="",
        mode="inpainting",
        prompt="warm-up",
        size=size,
        steps=1,
        guidance=1.0 if guided else None,
        strength=0.5,
        seeds=(0,),
        output_format="png",
        output_quality=100,
        check_safety=False,
        max_megapixels=width * height / 1e6,
    )
    picture: Any = np.full((height, width, 3), 128, np.uint8)
    mask: Any = np.full((height, width), 255, np.uint8)
    return GenerationRequest(plan, picture, mask)


STEP_EVENT_PERIOD_S = 1.0


class EventStream:
    """Begins when it is made, in a running event loop; iterated once, it gives the job's events as they happen."""

    def __init__(self, engine: "Engine", job: GenerationRequest) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._pace = StepThrottle()
        self._events: asyncio.Queue[EngineEvent] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._ticket: CancelToken = engine.submit(job, self._hear)

    def _hear(self, event: EngineEvent) -> None:
        """Called from the engine's thread."""
        if not isinstance(event, StepDone) or self._pace.should_emit(event):
            self._loop.call_soon_threadsafe(self._take, event)

    def _take(self, event: EngineEvent) -> None:
        self._events.put_nowait(event)
        if isinstance(event, Completed | Failed | Canceled):
            self._ended.set()

    async def __aiter__(self) -> AsyncIterator[EngineEvent]:
        """Every event that is worth telling, the end included."""
        while not (self._ended.is_set() and self._events.empty()):
            yield await self._events.get()

    async def cancel(self) -> None:
        """Cancels what is not over, and returns only when the engine has let go of it, however often it is cancelled.

        Until then the caller's slot stays taken: a replica never works on more than its slots say.
        """
        if self._ended.is_set():
            return
        self._engine.cancel(self._ticket)
        while not self._ended.is_set():
            with suppress(asyncio.CancelledError):
                await self._ended.wait()


class StepThrottle:
    """Which steps of each image are worth telling: the first, the last, and between them one every `TELL_EVERY_S`.

    An event on its way out wakes threads of several processes, and nobody reads faster than that.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told_s: dict[int, float] = {}

    def should_emit(self, step: StepDone) -> bool:
        now_s = self._clock()
        told_s = self._told_s.get(step.image)
        if told_s is not None and now_s - told_s < STEP_EVENT_PERIOD_S and step.step < step.total:
            return False
        self._told_s[step.image] = now_s
        return True
