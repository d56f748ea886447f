"""Replays the kernels of a function as a CUDA graph, which spares the time to launch each of them.

A step of a small image has hundreds of short kernels, so launching them is a large part of its time.
"""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

MAX_GRAPHS = 64
"""The least recently used graph is dropped. Each keeps its inputs and output; they share the memory in between."""
MAX_TOKENS = 5120
"""Of a batch, with text. With more, computing takes much longer than launching."""
CAPTURE_USES = 4
"""Uses of a key before its graph is captured, which takes as long as several uses."""
MAX_FAILURES = 3
"""Failed captures after which graphs are turned off."""
_MAX_KEYS = 1000
_MAX_ERROR = 1e-2
"""Relative error of a replay against the function, beyond which its graph is not used. Usually they are equal."""
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
    sources: list["weakref.ref[Tensor]"]
    """The tensors that `inputs` were copied from."""


@dataclass(slots=True, eq=False)
class _Entry:
    uses: int = 0
    """Without a graph."""
    graph: _Graph | None = None


class CudaGraphs:
    """Graphs of functions of tensors, by a key. Belongs to the thread that owns the device."""

    def __init__(self, capture: Capture | None = None) -> None:
        self._capture = capture or _capture_on_one_stream()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        """Least recently used first."""
        self._failures = 0

    def run(self, key: Hashable, function: Function, inputs: Sequence[Tensor]) -> Tensor:
        """The function's result, which is valid until the next call.

        Equal keys and shapes must mean equal kernels. A graph is captured when a key is used for the
        `CAPTURE_USES`-th time since the start, or since its graph was dropped.
        """
        if self._failures == MAX_FAILURES:
            return function(inputs)
        key = (key, tuple(each.shape for each in inputs))
        entry = self._entries.setdefault(key, _Entry())
        self._entries.move_to_end(key)
        if entry.graph is not None:
            return _replay(entry.graph, inputs)
        output = function(inputs)
        entry.uses += 1
        if entry.uses >= CAPTURE_USES:
            self._add(entry, function, inputs, output)
        self._evict()
        return output

    def clear(self) -> None:
        """Drops all graphs."""
        self._entries.clear()

    def _add(self, entry: _Entry, function: Function, inputs: Sequence[Tensor], expected: Tensor) -> None:
        """Captures a graph, and checks it with the output that is expected for the inputs."""
        if not expected.isfinite().all():
            return  # Nothing to check the replay with, such as after an overflow in a LoRA.
        static_inputs = [each.clone() for each in inputs]
        try:
            replay, output = self._capture(function, static_inputs)
            graph = _Graph(replay, static_inputs, output, [weakref.ref(each) for each in inputs])
            error = (_replay(graph, inputs).float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-6)
            if not error <= _MAX_ERROR:
                raise RuntimeError(f"the relative error of the replay is {float(error):.2g}")
        except torch.OutOfMemoryError:
            _log.warning("no memory for another CUDA graph; all graphs are dropped")
            self.clear()
        except RuntimeError:
            self._failures += 1
            off = self._failures == MAX_FAILURES
            outcome = "graphs are turned off" if off else "it is tried again later"
            _log.warning("a CUDA graph was not captured, or its replay was wrong; %s", outcome, exc_info=True)
            entry.uses = 0
            if off:
                self.clear()
        else:
            entry.graph = graph

    def _evict(self) -> None:
        graphs = [key for key, entry in self._entries.items() if entry.graph is not None]
        for key in graphs[:-MAX_GRAPHS]:
            del self._entries[key]
        if len(self._entries) > _MAX_KEYS:
            self._entries.popitem(last=False)


def _replay(graph: _Graph, inputs: Sequence[Tensor]) -> Tensor:
    """Inputs that are the same objects as in the last replay are not copied again."""
    for index, (static, each) in enumerate(zip(graph.inputs, inputs, strict=True)):
        if graph.sources[index]() is not each:
            static.copy_(each)
            graph.sources[index] = weakref.ref(each)
    graph.replay()
    return graph.output


def _capture_on_one_stream() -> Capture:
    """Graphs share the memory of intermediate results, which needs one pool and one stream for all of them.

    The stream has a priority of its own, because torch hands out the streams of one priority again and again.
    """
    stream = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]
    return partial(capture_graph, torch.cuda.graph_pool_handle(), stream)


def capture_graph(
    pool: Any, stream: torch.cuda.Stream, function: Function, inputs: Sequence[Tensor]
) -> tuple[Callable[[], None], Tensor]:
    """Captures a CUDA graph. Raises RuntimeError if a kernel cannot be captured."""
    current = torch.cuda.current_stream()
    graph = torch.cuda.CUDAGraph()
    try:
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            function(inputs)  # Libraries allocate their workspaces for the stream in the first call.
        current.wait_stream(stream)
        # Other threads copy images and LoRAs meanwhile, which the default mode forbids.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            output = function(inputs)
    finally:
        # A capture that fails leaves its own stream as the current one.
        torch.cuda.set_stream(current)
    return graph.replay, output
