"""Makes linear layers on a CPU independent of the other images of a batch."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode


def batch_invariant(device: torch.device, images: int) -> AbstractContextManager[Any]:
    """Within the block, linear layers on a CPU give each image bit for bit the result of a batch of one.

    oneDNN sums a product in an order that depends on the number of rows, so the same row gets other bits in a larger
    batch: in float32 nearly always, in bf16 in nearly every pass from an inner width of 512 on. So linear layers run
    image by image; attention and norms treat each image separately anyway. On a GPU this does nothing: there, one
    product for the whole batch is what makes batching fast.
    """
    return _LinearPerImage() if device.type == "cpu" and images > 1 else nullcontext()


class _LinearPerImage(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is linear and args[0].shape[0] > 1:
            images, *weights = args
            return torch.cat([linear(image, *weights, **kwargs or {}) for image in images.split(1)])
        return func(*args, **kwargs or {})
