"""Device helpers: synchronization, memory, liveness, copies to the host, and the number of CPUs."""

import os
from pathlib import Path

import torch
from torch import Tensor

from serve.model_specs import ImageArray

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of a container, by the kernel's cgroup v2: microseconds of CPU time in each period, or `max`, and the period."""


def available_cpus(quota_file: Path = _CPU_QUOTA) -> int:
    """CPUs that this process may use, by its affinity and the quota of its container; all where neither is known."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, int(quota) // int(period)))


def synchronize(device: torch.device) -> None:
    """Waits for the work that this thread has queued on a GPU, and raises its errors. CPU work is synchronous."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def empty_cache(device: torch.device) -> None:
    """Returns cached memory to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def is_responsive(device: torch.device) -> bool:
    """Whether the device still computes; after some faults a GPU refuses all work until the process ends."""
    try:
        return float(torch.ones(1, device=device).add_(1)) == 2
    except Exception:
        return False


def to_host(image: Tensor) -> ImageArray:
    """The image as an array. From a GPU it is copied on a stream of its own, beside the work of other streams."""
    if image.device.type != "cuda":
        return image.numpy()
    stream = torch.cuda.Stream(image.device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        return image.to("cpu").numpy()
