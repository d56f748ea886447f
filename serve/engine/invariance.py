"""Batch invariance on a CPU: an image's numbers do not depend on who shares its pass. Knows no FLUX, only linears.

oneDNN sums a product in an order that depends on the number of rows, so the same row gives other bits in a larger
batch: in float32 nearly always, in bf16 where it tips the rounding, which is seldom at small widths and happens in
nearly every pass from an inner width of 512 on. Attention and norms handle each image by itself anyway. So only
linears are done image by image, and the rest of the pass stays shared.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode


def batch_invariant(device: torch.device) -> AbstractContextManager[Any]:
    """Within it, each image's linears on `device` give the bits that they give alone.

    On a GPU it does nothing: there, one product for a whole batch is what batching is for, and libraries choose their
    kernels by its size.
    """
    return _LinearsImageByImage() if device.type == "cpu" else nullcontext()


class _LinearsImageByImage(TorchFunctionMode):
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
