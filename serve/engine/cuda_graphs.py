"""Replays the kernels of a function as a CUDA graph, which spares the time to launch each of them.

A step of a small image has hundreds of short kernels, so launching them is a large part of its time.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

MAX_GRAPHS = 32
"""The least recently used graph is dropped. Each keeps its inputs and output; they share the memory in between."""
MAX_TOKENS = 5120
"""Of a batch, with text. With more, computing takes much longer than launching."""
_MAX_SEEN = 10_000
_MAX_ERROR = 1e-2
"""Relative error of a replay against the function, beyond which graphs are turned off. Usually they are equal."""
_log = logging.getLogger(__name__)

Function = Callable[[Sequence[Tensor]], Tensor]
Capture = Callable[[Function, Sequence[Tensor]], tuple[Callable[[], None], Tensor]]
"""Captures the function with these inputs. Returns a replay function and the output that it writes."""


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    replay: Callable[[], None]
    inputs: Sequence[Tensor]
    """Read by the replay, so new inputs are copied into them."""
    output: Tensor
    sources: list[Tensor]
    """The tensors that `inputs` were copied from."""


class CudaGraphs:
    """Graphs of functions of tensors, by a key. Belongs to the thread that owns the device."""

    def __init__(self, capture: Capture | None = None) -> None:
        self._capture = capture or _capture_on_one_stream()
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._seen: set[Hashable] = set()
        self._enabled = True

    def run(self, key: Hashable, function: Function, inputs: Sequence[Tensor]) -> Tensor:
        """The function's result, which is valid until the next call.

        Equal keys and shapes must mean equal kernels. A graph is captured when a key is used for the second time.
        """
        if not self._enabled:
            return function(inputs)
        key = (key, tuple(each.shape for each in inputs))
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return _replay(self._graphs[key], inputs)
        output = function(inputs)
        if key in self._seen:
            self._add(key, function, inputs, output)
        elif len(self._seen) < _MAX_SEEN:
            self._seen.add(key)
        return output

    def _add(self, key: Hashable, function: Function, inputs: Sequence[Tensor], expected: Tensor) -> None:
        """Captures a graph, and checks it with the output that is expected for the inputs."""
        if not expected.isfinite().all():
            return  # Nothing to check the replay with, such as after an overflow in a LoRA.
        static_inputs = [each.clone() for each in inputs]
        try:
            replay, output = self._capture(function, static_inputs)
            graph = _Graph(replay, static_inputs, output, list(inputs))
            error = (_replay(graph, inputs).float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-6)
            if not error <= _MAX_ERROR:
                raise RuntimeError(f"the relative error of the replay is {float(error):.2g}")
        except torch.OutOfMemoryError:
            _log.warning("no memory for another CUDA graph; all graphs are dropped")
            self._graphs.clear()
        except RuntimeError:
            _log.warning(
                "CUDA graphs are turned off: one could not be captured, or its replay was wrong", exc_info=True
            )
            self._enabled = False
            self._graphs.clear()
        else:
            self._graphs[key] = graph
            if len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)


def _replay(graph: _Graph, inputs: Sequence[Tensor]) -> Tensor:
    """Inputs that are the same objects as in the last replay are not copied again."""
    for index, (static, each) in enumerate(zip(graph.inputs, inputs, strict=True)):
        if graph.sources[index] is not each:
            static.copy_(each)
            graph.sources[index] = each
    graph.replay()
    return graph.output


def _capture_on_one_stream() -> Capture:
    """Graphs share the memory of intermediate results, which needs one pool and one stream for all of them."""
    return partial(capture_graph, torch.cuda.graph_pool_handle(), torch.cuda.Stream())  # type: ignore[no-untyped-call]


def capture_graph(
    pool: Any, stream: torch.cuda.Stream, function: Function, inputs: Sequence[Tensor]
) -> tuple[Callable[[], None], Tensor]:
    """Captures a CUDA graph. Raises RuntimeError if a kernel cannot be captured."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function(inputs)  # Libraries allocate their workspaces for the stream in the first call.
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads copy images and LoRAs meanwhile, which the default mode forbids.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        output = function(inputs)
    return graph.replay, output
