"""What the engine asks of a device besides arithmetic: that work is over, that memory is given back, that it lives.

A CPU has finished when a call returns; a GPU has only been told.
"""

import torch
from torch import Tensor

from serve.engine.request import ImageArray


def synchronize(device: torch.device) -> None:
    """Returns when `device` has done all that this thread gave it. Raises what went wrong there."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def empty_cache(device: torch.device) -> None:
    """Hands memory that was kept for reuse back to the device, so that it can be cut anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def is_responsive(device: torch.device) -> bool:
    """Whether the device still computes; after some faults a GPU refuses everything until the process ends."""
    try:
        return float(torch.ones(1, device=device).add_(1)) == 2
    except Exception:
        return False


def to_host(picture: Tensor) -> ImageArray:
    """The picture as an array. From a GPU it is copied beside the work that goes on there, not behind it."""
    if picture.device.type != "cuda":
        return picture.numpy()
    stream = torch.cuda.Stream(picture.device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        return picture.to("cpu").numpy()
