"""CUDA graphs on a CPU, with a fake capture that copies what a real graph would read and write."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from serve.engine.cuda_graphs import MAX_GRAPHS, CudaGraphs, Function
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


def test_graph_is_captured_at_the_second_use_of_a_key_and_replayed_from_the_third(
    graphs: CudaGraphs, capture: FakeCapture
) -> None:
    captured = []
    for _ in range(4):
        _run(graphs, "a", torch.randn(3), torch.randn(3))
        captured.append((len(capture.captured), capture.replays))
    assert captured == [(0, 0), (1, 1), (1, 2), (1, 3)]


def test_new_inputs_are_copied_and_the_same_objects_are_not(graphs: CudaGraphs, capture: FakeCapture) -> None:
    same = torch.ones(3)
    for number in range(2):
        _run(graphs, "a", torch.full((3,), float(number)), same)
    static = capture.captured[0]
    assert all(each is not same for each in static)
    static[1].fill_(7)
    result = graphs.run("a", _total, [torch.full((3,), 5.0), same])
    assert torch.equal(result, torch.full((3,), 17.0))
    _run(graphs, "a", torch.zeros(3), torch.full((3,), 9.0))
    _run(graphs, "a", torch.zeros(3), same)


@pytest.mark.parametrize(("other_key", "other_size"), [("a", 4), ("b", 3), (None, 3)])
def test_other_keys_and_shapes_have_graphs_of_their_own(
    graphs: CudaGraphs, capture: FakeCapture, other_key: object, other_size: int
) -> None:
    for _ in range(3):
        _run(graphs, "a", torch.randn(3), torch.randn(3))
        _run(graphs, other_key, torch.randn(other_size), torch.randn(other_size))
    assert len(capture.captured) == 2


def test_least_recently_used_graph_is_dropped(graphs: CudaGraphs, capture: FakeCapture) -> None:
    for key in range(MAX_GRAPHS):
        for _ in range(2):
            _run(graphs, key, torch.randn(3), torch.randn(3))
    _run(graphs, 0, torch.randn(3), torch.randn(3))
    for _ in range(2):
        _run(graphs, "new", torch.randn(3), torch.randn(3))
    assert len(capture.captured) == MAX_GRAPHS + 1
    _run(graphs, 0, torch.randn(3), torch.randn(3))
    assert len(capture.captured) == MAX_GRAPHS + 1
    _run(graphs, 1, torch.randn(3), torch.randn(3))
    assert len(capture.captured) == MAX_GRAPHS + 2


def test_wrong_replay_turns_graphs_off(graphs: CudaGraphs, capture: FakeCapture, logs: Logs) -> None:
    capture.offset = 1.0
    for _ in range(4):
        _run(graphs, "a", torch.ones(3), torch.ones(3))
        _run(graphs, "b", torch.ones(3), torch.ones(3))
    assert len(capture.captured) == 1
    assert [record.levelname for record in logs.records] == ["WARNING"]


def test_graph_that_cannot_be_captured_turns_graphs_off(graphs: CudaGraphs, capture: FakeCapture, logs: Logs) -> None:
    for _ in range(3):
        _run(graphs, "a", torch.ones(3), torch.ones(3))
    capture.errors = [RuntimeError("operation not permitted when stream is capturing")]
    for _ in range(3):
        _run(graphs, "b", torch.ones(3), torch.ones(3))
        _run(graphs, "a", torch.ones(3), torch.ones(3))
    assert len(capture.captured) == 1
    assert [record.levelname for record in logs.records] == ["WARNING"]


def test_out_of_memory_drops_the_graphs_but_keeps_them_on(graphs: CudaGraphs, capture: FakeCapture, logs: Logs) -> None:
    for _ in range(3):
        _run(graphs, "a", torch.ones(3), torch.ones(3))
    capture.errors = [torch.OutOfMemoryError("full")]
    for _ in range(2):
        _run(graphs, "b", torch.ones(3), torch.ones(3))
    for key in "ab":
        _run(graphs, key, torch.ones(3), torch.ones(3))
    assert len(capture.captured) == 3
    assert [record.levelname for record in logs.records] == ["WARNING"]


def test_result_that_is_not_finite_is_not_captured(graphs: CudaGraphs, capture: FakeCapture, logs: Logs) -> None:
    """One request's overflow must not turn off graphs for all."""
    for _ in range(3):
        assert graphs.run("a", _total, [torch.full((3,), torch.inf), torch.ones(3)]).isinf().all()
    assert not capture.captured
    for _ in range(3):
        _run(graphs, "a", torch.ones(3), torch.ones(3))
    assert capture.replays
    assert not logs.records
