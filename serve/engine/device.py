"""Device helpers: synchronization, memory, liveness and copies to the host."""

import torch
from torch import Tensor

from serve.model_specs import ImageArray


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
