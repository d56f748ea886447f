"""The engine: accepts requests from any thread and runs them on one thread that owns the device."""

import itertools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
import torch

from serve.engine import device
from serve.engine.batch_executor import PassTime
from serve.engine.checkpoint import Checkpoint
from serve.engine.compilation import compiled_graphs
from serve.engine.compute_dtype import dtype_name
from serve.engine.engine_stats import EngineStats
from serve.engine.event_stream import EventStream
from serve.engine.lora_staging import LoraStager
from serve.engine.request import EngineEvent, Failed, FinalEvent, GenerationRequest, Listener
from serve.engine.request_state import CancelToken, RequestState
from serve.engine.scheduler import DeviceCall, Scheduler
from serve.engine.watchdog import EngineHealth, Watchdog
from serve.errors import EngineFailed, NotReady
from serve.model_specs import Size
from serve.settings import PoolSettings
from serve.stage_times import StageTimes

MAX_THREADS = 8
"""CPU threads by default. With more, the small products of a step do not get faster."""

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


class Engine:
    """Generates images for many requests at once, one denoising step at a time."""

    def __init__(self, checkpoint: Checkpoint, pool: PoolSettings) -> None:
        self._device = checkpoint.device
        self._guidance_embeds = checkpoint.guidance_embeds
        self._num_threads = _num_threads(pool)
        self.compute_dtype = dtype_name(checkpoint.transformer.dtype)
        """The dtype in which the transformer computes, such as `float32`."""
        self._compiles_transformer = "transformer" in pool.compiled_parts
        self._has_slow_first_runs = bool(pool.compiled_parts) or device.is_asynchronous(checkpoint.device)
        """It compiles, captures CUDA graphs, or chooses kernels for new shapes."""
        self._watchdog = Watchdog()
        self._scheduler = Scheduler(checkpoint, pool, self._watchdog)
        self._lora_stager = LoraStager(self._scheduler.loras, self._wake)
        self._scheduler.lora_stager = self._lora_stager
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._request_numbers = itertools.count()
        self._condition = threading.Condition()
        self._running = False
        self._new_requests: list[RequestState] = []
        self._new_device_calls: list[DeviceCall] = []

    def start(self) -> None:
        self._running = True
        self._thread.start()

    def stop(self) -> None:
        """Stops after the current piece of work and fails unfinished requests. Returns when the thread has ended."""
        with self._condition:
            self._running = False
            self._condition.notify()
        self._lora_stager.stop()
        if self._thread.ident is not None:
            self._thread.join()

    def warm_up(self, sizes: Sequence[Size]) -> None:
        """Generates an image of each size through every stage, measures each kind of work, and prepares previews.

        What only first runs do, such as compiling, is done before and not measured. Raises the error that a caller
        would get.
        """
        times = StageTimes()
        if sizes and self._compiles_transformer:
            self.run_on_device(partial(self._scheduler.compile, sizes[0])).result()
            times.end("compiling the transformer")
        if self._has_slow_first_runs:
            for size in _with_a_square_and_another_shape(sizes):
                self._run_to_end(_warm_up_request(size, self._guidance_embeds, self._scheduler.denoiser.warm_up_steps))
            self.run_on_device(self._scheduler.costs.clear).result()
            times.end("first runs")
        with self._watchdog.measure():
            for size in sizes:
                self._run_to_end(_warm_up_request(size, self._guidance_embeds, steps=1))
        times.end("measuring")
        self.run_on_device(self._scheduler.executor.previewer.fit).result()
        times.end("previews")
        _log.info("warm-up of %d sizes: %s", len(sizes), times)

    def submit(self, request: GenerationRequest, listener: Listener) -> CancelToken:
        """Queues a request. `listener` is called on the engine's thread with its events, in order, up to the final one.

        Raises `NotReady` unless the engine runs, and ValueError for a request without guidance where it is required.
        """
        if self._guidance_embeds and request.guidance is None:
            raise ValueError("this checkpoint requires guidance")
        with self._condition:
            self._check_running()
            staging = self._lora_stager.start(request.lora_weights)
            state = RequestState(next(self._request_numbers), request, listener, staging=staging)
            self._new_requests.append(state)
            self._condition.notify()
        return state.cancel_token

    def stream(self, request: GenerationRequest) -> EventStream:
        """Submits a request from a running event loop and returns its events. Raises as `submit` does."""
        return EventStream(self, request)

    def cancel(self, cancel_token: CancelToken) -> None:
        """Cancels a request before its next step. Its final event is `Canceled`, unless it has ended already."""
        cancel_token.cancelled = True
        self._wake()

    def run_on_device(self, action: Callable[[], Result]) -> "Future[Result]":
        """Calls `action` on the engine's thread, between two steps. Raises `NotReady` unless the engine runs."""
        future: Future[Result] = Future()
        with self._condition:
            self._check_running()
            self._new_device_calls.append((future, action))
            self._condition.notify()
        return future

    @property
    def health(self) -> EngineHealth:
        """Of the engine's thread; may be read from any thread."""
        return self._watchdog.health(alive=self._thread.is_alive() and not self._scheduler.device_lost)

    @property
    def stats(self) -> EngineStats:
        with self._condition:
            scheduler = self._scheduler
            new_images = sum(len(state.parameters.seeds) for state in self._new_requests)
            return EngineStats(
                batches=scheduler.executor.batches,
                image_steps=scheduler.executor.image_steps,
                images=scheduler.unfinished_images + new_images,
                lora_loads=scheduler.loras.loads,
                resident_loras=scheduler.loras.residents,
                lora_slots=scheduler.loras.slots.count,
                lora_slots_used=scheduler.loras.slots_used,
                prompt_cache_hits=scheduler.prompt_encoder.hits,
                prompt_cache_misses=scheduler.prompt_encoder.misses,
                compiled_graphs=compiled_graphs(),
            )

    def take_pass_times(self) -> list[PassTime]:
        """The passes that ended since the last call, the last ones if there were very many."""
        return self._scheduler.executor.take_pass_times()

    def memory_bytes(self) -> Mapping[str, int]:
        """See `device.memory_bytes`."""
        return device.memory_bytes(self._device)

    def _check_running(self) -> None:
        if not self._running:
            raise NotReady("the image engine is not running")

    def _run(self) -> None:
        error = EngineFailed()
        try:
            self._run_until_stopped()
            error = EngineFailed("the service is stopping; send the request again")
        except Exception:
            _log.exception("the engine has stopped; all requests fail")
        with self._condition:
            self._running = False
            self._take_new_work()
        self._scheduler.fail_all(error)

    def _run_until_stopped(self) -> None:
        if self._device.type == "cpu":
            device.yield_to_other_threads()
        torch.set_num_threads(self._num_threads)
        while self._wait_for_work():
            try:
                self._scheduler.step()
            except Exception:
                _log.exception("an iteration of the engine failed; all requests fail")
                self._scheduler.fail_all(EngineFailed())

    def _wait_for_work(self) -> bool:
        """Waits until there is work and passes new work to the scheduler. Returns False if the engine stops.

        While the device is busy with what was queued, only new work ends the wait.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._should_wake or self._scheduler.can_work)
            while not self._should_wake and (wait_s := self._scheduler.wait_s) > 0:
                self._condition.wait(wait_s)
            self._take_new_work()
            return self._running

    def _take_new_work(self) -> None:
        self._scheduler.add(self._new_requests, self._new_device_calls)
        self._new_requests, self._new_device_calls = [], []

    @property
    def _should_wake(self) -> bool:
        return bool(self._new_requests or self._new_device_calls or not self._running)

    def _wake(self) -> None:
        with self._condition:
            self._condition.notify()

    def _run_to_end(self, request: GenerationRequest) -> None:
        """Runs a request and drops its images. Raises its error."""
        events: SimpleQueue[EngineEvent] = SimpleQueue()
        self.submit(request, events.put)
        while not isinstance(event := events.get(), FinalEvent):
            pass
        if isinstance(event, Failed):
            raise event.error


def _num_threads(pool: PoolSettings) -> int:
    return min(device.available_cpus(), MAX_THREADS) if pool.num_threads is None else pool.num_threads


def _with_a_square_and_another_shape(sizes: Sequence[Size]) -> list[Size]:
    """A compiler may take equal sides for a condition, so both shapes have to be compiled."""
    if not sizes:
        return []
    side = min(sizes[0])
    square = [] if any(width == height for width, height in sizes) else [(side, side)]
    other = [] if any(width != height for width, height in sizes) else [(side, side // 2)]
    return [*sizes, *square, *other]


def _warm_up_request(size: Size, guidance_embeds: bool, steps: int) -> GenerationRequest:
    """Inpainting uses every stage: text, image encoding, transformer, decoding."""
    width, height = size
    return GenerationRequest(
        prompt="warm-up",
        size=size,
        steps=steps,
        seeds=(0,),
        guidance=1.0 if guidance_embeds else None,
        strength=1.0,
        image=np.full((height, width, 3), 128, np.uint8),
        mask=np.full((height, width), 255, np.uint8),
    )
