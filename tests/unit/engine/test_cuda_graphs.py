"""CUDA graphs on a CPU, with a fake capture that copies what a real graph would read and write."""

import gc
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from serve.engine.cuda_graphs import CAPTURE_USES, MAX_FAILURES, MAX_GRAPHS, CudaGraphs, Function
from tests.logs import Logs


class FakeCapture:
    """Replays call the function with the captured inputs, and write the captured output."""

    def __init__(self) -> None:
        self.captured: list[Sequence[Tensor]] = []
        self.replays = 0
        self.errors: list[Exception] = []
        self.offset = 0.0
        """Added to what replays write."""

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> tuple[Callable[[], None], Tensor]:
        if self.errors:
            raise self.errors.pop()
        self.captured.append(inputs)
        output = torch.zeros_like(function(inputs))

        def replay() -> None:
            self.replays += 1
            output.copy_(function(inputs) + self.offset)

        return replay, output


def _total(tensors: Sequence[Tensor]) -> Tensor:
    first, second = tensors
    return first * 2 + second


def _run(graphs: CudaGraphs, key: object, *inputs: Tensor) -> None:
    """Runs `_total` and checks its result."""
    assert torch.equal(graphs.run(key, _total, inputs), _total(inputs))


@pytest.fixture
def capture() -> FakeCapture:
    return FakeCapture()


@pytest.fixture
def graphs(capture: FakeCapture) -> CudaGraphs:
    return CudaGraphs(capture)


def _use(graphs: CudaGraphs, key: object, times: int = CAPTURE_USES) -> None:
    for _ in range(times):
        _run(graphs, key, torch.randn(3), torch.randn(3))


def test_graph_is_captured_after_some_uses_of_a_key_and_replayed_from_then_on(
    graphs: CudaGraphs, capture: FakeCapture
) -> None:
    captured = []
    for _ in range(CAPTURE_USES + 2):
        _use(graphs, "a", times=1)
        captured.append((len(capture.captured), capture.replays))
    assert captured == [(0, 0)] * (CAPTURE_USES - 1) + [(1, 1), (1, 2), (1, 3)]


def test_new_inputs_are_copied_and_the_same_objects_are_not(graphs: CudaGraphs, capture: FakeCapture) -> None:
    same = torch.ones(3)
    for number in range(CAPTURE_USES):
        _run(graphs, "a", torch.full((3,), float(number)), same)
    static = capture.captured[0]
    assert all(each is not same for each in static)
    static[1].fill_(7)
    result = graphs.run("a", _total, [torch.full((3,), 5.0), same])
    assert torch.equal(result, torch.full((3,), 17.0))
    _run(graphs, "a", torch.zeros(3), torch.full((3,), 9.0))
    _run(graphs, "a", torch.zeros(3), same)


def test_inputs_are_not_kept(graphs: CudaGraphs) -> None:
    inputs = [torch.ones(3), torch.ones(3)]
    for _ in range(CAPTURE_USES + 1):
        graphs.run("a", _total, inputs)
    references = [weakref.ref(each) for each in inputs]
    inputs.clear()
    gc.collect()
    assert [reference() for reference in references] == [None, None]


@pytest.mark.parametrize(("other_key", "other_size"), [("a", 4), ("b", 3), (None, 3)])
def test_other_keys_and_shapes_have_graphs_of_their_own(
    graphs: CudaGraphs, capture: FakeCapture, other_key: object, other_size: int
) -> None:
    for _ in range(CAPTURE_USES + 1):
        _run(graphs, "a", torch.randn(3), torch.randn(3))
        _run(graphs, other_key, torch.randn(other_size), torch.randn(other_size))
    assert len(capture.captured) == 2


def test_least_recently_used_graph_is_dropped_and_its_uses_are_counted_anew(
    graphs: CudaGraphs, capture: FakeCapture
) -> None:
    for key in range(MAX_GRAPHS):
        _use(graphs, key)
    _use(graphs, 0, times=1)
    _use(graphs, "new")
    assert len(capture.captured) == MAX_GRAPHS + 1
    _use(graphs, 0)
    _use(graphs, 1, times=CAPTURE_USES - 1)
    assert len(capture.captured) == MAX_GRAPHS + 1
    _use(graphs, 1, times=1)
    assert len(capture.captured) == MAX_GRAPHS + 2


def test_cleared_graphs_are_captured_again(graphs: CudaGraphs, capture: FakeCapture) -> None:
    _use(graphs, "a")
    graphs.clear()
    _use(graphs, "a", times=CAPTURE_USES - 1)
    assert len(capture.captured) == 1
    _use(graphs, "a", times=1)
    assert len(capture.captured) == 2


def test_wrong_replays_turn_graphs_off(graphs: CudaGraphs, capture: FakeCapture, logs: Logs) -> None:
    capture.offset = 1.0
    _use(graphs, "a", times=CAPTURE_USES * (MAX_FAILURES + 1))
    assert len(capture.captured) == MAX_FAILURES
    assert [record.levelname for record in logs.records] == ["WARNING"] * MAX_FAILURES


def test_failed_capture_is_tried_again(graphs: CudaGraphs, capture: FakeCapture, logs: Logs) -> None:
    capture.errors = [RuntimeError("operation not permitted when stream is capturing")]
    _use(graphs, "a", times=2 * CAPTURE_USES + 1)
    assert len(capture.captured) == 1
    assert capture.replays == 2
    assert [record.levelname for record in logs.records] == ["WARNING"]


def test_failed_captures_turn_graphs_off(graphs: CudaGraphs, capture: FakeCapture) -> None:
    _use(graphs, "a")
    capture.errors = [RuntimeError("operation not permitted when stream is capturing")] * MAX_FAILURES
    _use(graphs, "b", times=CAPTURE_USES * (MAX_FAILURES + 1))
    replays = capture.replays
    _use(graphs, "a")
    assert (len(capture.captured), capture.replays) == (1, replays)


def test_out_of_memory_drops_the_graphs_but_keeps_them_on(graphs: CudaGraphs, capture: FakeCapture, logs: Logs) -> None:
    _use(graphs, "a")
    capture.errors = [torch.OutOfMemoryError("full")]
    _use(graphs, "b")
    for key in "ab":
        _use(graphs, key)
    assert len(capture.captured) == 3
    assert [record.levelname for record in logs.records] == ["WARNING"]


def test_result_that_is_not_finite_is_not_captured(graphs: CudaGraphs, capture: FakeCapture, logs: Logs) -> None:
    """One request's overflow must not turn off graphs for all."""
    for _ in range(CAPTURE_USES):
        assert graphs.run("a", _total, [torch.full((3,), torch.inf), torch.ones(3)]).isinf().all()
    assert not capture.captured
    _use(graphs, "a", times=2)
    assert capture.replays
    assert not logs.records
