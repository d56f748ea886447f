"""Compiles functions of networks with `torch.compile`, and runs them uncompiled if the compiler fails."""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
import torch._dynamo
import torch.fx.experimental._config
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._dynamo.utils import counters

Backend = str | Callable[..., Any]
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_MAX_VARIANTS = 64
"""Of one function in one process. A block of FLUX has about five: one image or several, with and without LoRAs."""
CHANNELS_LAST = {"force_layout_optimization": True}
"""For networks of convolutions. With dynamic sizes, inductor does not choose this layout itself."""
WHOLE_ROWS = {"split_reductions": False}
"""For blocks that quantize rows: otherwise inductor splits the rows of a wide layer over two kernels, and computes them
twice."""
_thread = threading.local()
_log = logging.getLogger(__name__)


class Compiled:
    """A compiled function. If the compiler fails, the function runs uncompiled from then on."""

    def __init__(
        self,
        name: str,
        function: Callable[Parameters, Result],
        backend: Backend = "inductor",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """All sizes of tensors are dynamic, except that a size of 1 is compiled apart. `options` are for inductor."""
        self._name = name
        self._function = function
        self._compiled: Callable[Parameters, Result] | None = torch.compile(
            function,
            backend=backend,
            fullgraph=True,
            dynamic=True,
            options=dict(options) if options and backend == "inductor" else None,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiled is not None:
            _configure_compiler()
            try:
                return self._compiled(*args, **kwargs)
            except (TorchDynamoException, FailOnRecompileLimitHit):
                _log.exception("compiling %s failed; it runs uncompiled, which is slower", self._name)
                self._compiled = None
        return self._function(*args, **kwargs)


def _configure_compiler() -> None:
    """torch keeps this configuration by thread, so the thread that compiles has to set it."""
    if not getattr(_thread, "configured", False):
        # Otherwise, sizes that are equal in the first call would have to be equal in all further ones.
        torch.fx.experimental._config.use_duck_shape = False
        torch._dynamo.config.recompile_limit = _MAX_VARIANTS
        _thread.configured = True


def compile_forward(
    name: str, network: nn.Module, backend: Backend = "inductor", options: Mapping[str, Any] | None = None
) -> None:
    """Compiles the forward pass of `network` in place."""
    network.forward = Compiled(name, network.forward, backend, options)


def compiled_graphs() -> int:
    """Graphs compiled in this process so far."""
    return int(counters["stats"]["unique_graphs"])


def cached_graphs() -> int:
    """Of these, the graphs that were read from the cache on disk."""
    return int(counters["inductor"]["fxgraph_cache_hit"])
