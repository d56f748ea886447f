"""Device helpers: synchronization, events, memory, liveness, copies to the host, and the number of CPUs."""

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from serve.model_specs import ImageArray

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of a container, by the kernel's cgroup v2: microseconds of CPU time in each period, or `max`, and the period."""
_LOWEST_PRIORITY = 19
"""The highest niceness. Ray gives its workers 15, and only root may lower a niceness."""
_log = logging.getLogger(__name__)


def available_cpus(quota_file: Path = _CPU_QUOTA) -> int:
    """CPUs that this process may use, by its affinity and the quota of its container; all where neither is known."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, int(quota) // int(period)))


def yield_to_other_threads() -> None:
    """Lets other threads run first when they need the CPU of this thread, or of a thread that it starts from now on.

    A step on a CPU occupies all cores for seconds, and an ingress or proxy on the same machine must answer meanwhile.
    """
    if sys.platform == "linux":  # Elsewhere, this would concern the whole process.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)


def synchronize(device: torch.device) -> None:
    """Waits for the work that this thread has queued on a GPU, and raises its errors. CPU work is synchronous."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class DeviceEvent(Protocol):
    """The end of the work that was queued on a device before the event."""

    def query(self) -> bool:
        """Whether the work is done."""

    def synchronize(self) -> None:
        """Waits until the work is done, and raises its errors."""

    def seconds_since(self, earlier: Any) -> float:
        """Between the ends of the work of two events of one device, both done."""


class CudaEvent:
    """An event on the current stream of a GPU. A waiting thread sleeps."""

    def __init__(self, device: torch.device) -> None:
        self._event: Any = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(device))

    def query(self) -> bool:
        """An event whose work failed is done; `synchronize` raises the error."""
        try:
            return bool(self._event.query())
        except RuntimeError:
            return True

    def synchronize(self) -> None:
        self._event.synchronize()

    def seconds_since(self, earlier: "CudaEvent") -> float:
        return float(earlier._event.elapsed_time(self._event)) / 1000


class HostEvent:
    """Of a device that computes synchronously: all work is done."""

    def __init__(self) -> None:
        self._time_s = time.perf_counter()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def seconds_since(self, earlier: "HostEvent") -> float:
        return self._time_s - earlier._time_s


def is_asynchronous(device: torch.device) -> bool:
    """Whether the device computes while the thread that queued the work continues."""
    return device.type == "cuda"


def record_event(device: torch.device) -> DeviceEvent:
    """An event after all work that this thread has queued."""
    return CudaEvent(device) if device.type == "cuda" else HostEvent()


def empty_cache(device: torch.device) -> None:
    """Returns cached memory to the device. A fault of the device is only logged; `is_responsive` reports it."""
    if device.type == "cuda":
        try:
            torch.cuda.empty_cache()
        except RuntimeError:
            _log.exception("cached memory was not returned to the device")


def memory_bytes(device: torch.device) -> dict[str, int]:
    """Memory of a GPU, of this process but for `total`. Empty for other devices."""
    if device.type != "cuda":
        return {}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "peak": torch.cuda.max_memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "total": torch.cuda.get_device_properties(device).total_memory,
    }


def is_responsive(device: torch.device) -> bool:
    """Whether the device still computes; after some faults a GPU refuses all work until the process ends."""
    try:
        return float(torch.ones(1, device=device).add_(1)) == 2
    except torch.OutOfMemoryError:
        return True
    except Exception:
        return False


def from_host(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of numbers. A copy to a GPU is queued, so that this thread does not wait for the work before it."""
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def queue_to_host(values: Tensor) -> Tensor:
    """A copy on the host, in pinned memory. From a GPU, it is complete after an event that is recorded from now on."""
    return values.to("cpu", non_blocking=True)


def to_host(image: Tensor) -> ImageArray:
    """The image as an array. From a GPU it is copied on a stream of its own, beside the work of other streams."""
    if image.device.type != "cuda":
        return image.numpy()
    stream = torch.cuda.Stream(image.device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        return image.to("cpu").numpy()
