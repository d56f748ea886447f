"""Prepares LoRAs for their copy to a GPU in a thread of its own."""

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from serve.engine.lora_layers import LoraSlots
from serve.engine.lora_manager import LoraManager, stage_weights
from serve.engine.lora_storage import StagedLora, pageable_memory
from serve.lora.weights import LoraWeights

PINNED_BUFFERS = 2
PINNED_BUFFER_BYTES = 2**30
"""A LoRA of rank 91 for all layers of FLUX.1."""
_THREADS = 2
"""Of the conversion, which runs beside the threads that prepare images."""
_log = logging.getLogger(__name__)


def _do_nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Staging:
    """The LoRAs that are staged for one request."""

    loras: "Mapping[str, Future[StagedLora]]" = field(default_factory=dict)
    """By key."""
    release: Callable[[], None] = _do_nothing
    """Must be called once, when the request no longer needs them."""

    @property
    def is_done(self) -> bool:
        return all(staged.done() for staged in self.loras.values())


class PinnedBuffers:
    """A few buffers of pinned memory, which a GPU reads faster than other memory. May be used from any thread.

    They are allocated when they are needed, and kept: allocating pinned memory delays the launch of kernels.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Tensor] = []
        self._unallocated = PINNED_BUFFERS

    def take(self, size_bytes: int) -> Tensor | None:
        """A buffer of at least this size; None if there is none."""
        if size_bytes > PINNED_BUFFER_BYTES:
            return None
        with self._lock:
            if self._free:
                return self._free.pop()
            if not self._unallocated:
                return None
            self._unallocated -= 1
        try:
            return torch.empty(PINNED_BUFFER_BYTES, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:
            _log.warning("pinned memory was not allocated, so LoRAs are loaded more slowly", exc_info=True)
            return None

    def give_back(self, buffer: Tensor) -> None:
        with self._lock:
            self._free.append(buffer)


class _Conversion:
    """A LoRA that is staged for some requests."""

    def __init__(self, thread: ThreadPoolExecutor, slots: LoraSlots, lora: LoraWeights, buffers: PinnedBuffers) -> None:
        self.users = 0
        """Requests that need it."""
        self._buffers = buffers
        self._buffer: Tensor | None = None
        self.future = thread.submit(stage_weights, slots, lora, self._allocate)

    def end(self) -> None:
        """Must be called when no request needs it."""
        self.future.cancel()
        # One that runs writes to its buffer until it is done.
        self.future.add_done_callback(self._free)

    def _allocate(self, size_bytes: int) -> Tensor:
        self._buffer = self._buffers.take(size_bytes)
        return pageable_memory(size_bytes) if self._buffer is None else self._buffer

    def _free(self, _: "Future[StagedLora]") -> None:
        if self._buffer is not None:
            self._buffers.give_back(self._buffer)


class LoraStager:
    """Converts LoRAs to the layout of the slots, in pinned memory, so that the engine's thread only copies.

    Converting takes more than a step of the transformer. For slots on a CPU there is nothing to gain, so it does
    nothing there. Requests for the same LoRA share its conversion.
    """

    def __init__(self, manager: LoraManager, on_staged: Callable[[], None] = _do_nothing) -> None:
        """`on_staged` is called, on any thread, after each LoRA."""
        self._manager = manager
        self._on_staged = on_staged
        self._lock = threading.Lock()
        self._conversions: dict[str, _Conversion] = {}
        """By key."""
        self._buffers = PinnedBuffers()
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="lora-staging", initializer=partial(torch.set_num_threads, _THREADS)
        )

    def start(self, weights: Mapping[str, LoraWeights]) -> Staging:
        """Starts to convert those LoRAs that are not on the device. May be called from any thread."""
        if self._manager.slots.device.type != "cuda":
            return Staging()
        conversions: dict[str, _Conversion] = {}
        with self._lock:
            for key, lora in weights.items():
                if not self._manager.is_resident(key):
                    conversions[key] = self._conversions.get(key) or self._convert(key, lora)
                    conversions[key].users += 1
        for conversion in conversions.values():
            conversion.future.add_done_callback(lambda _: self._on_staged())
        futures = {key: conversion.future for key, conversion in conversions.items()}
        return Staging(futures, partial(self._release, conversions))

    def extend(self, staging: Staging, weights: Mapping[str, LoraWeights]) -> Staging:
        """`staging`, or another one instead if LoRAs were evicted from the device that were there when it started."""
        if all(key in staging.loras or self._manager.is_resident(key) for key in weights):
            return staging
        extended = self.start(weights)
        staging.release()
        return extended

    def stop(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _convert(self, key: str, lora: LoraWeights) -> _Conversion:
        conversion = _Conversion(self._thread, self._manager.slots, lora, self._buffers)
        self._conversions[key] = conversion
        return conversion

    def _release(self, conversions: Mapping[str, _Conversion]) -> None:
        """Ends those that no other request needs."""
        with self._lock:
            for conversion in conversions.values():
                conversion.users -= 1
            unused = [key for key, conversion in conversions.items() if not conversion.users]
            for key in unused:
                del self._conversions[key]
        # Outside of the lock, because it calls `on_staged`.
        for key in unused:
            conversions[key].end()
