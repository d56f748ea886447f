"""Compiled functions: fall-back to the plain function, and errors that are passed on."""

import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit

from serve.engine.compilation import CHANNELS_LAST, WHOLE_ROWS, Compiled, compile_forward, compiled_graphs
from tests.logs import Logs

pytestmark = pytest.mark.usefixtures("_fresh_compiler")


def _double(values: Tensor) -> Tensor:
    return values * 2


def _broken_backend(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    raise RuntimeError("no such kernel")


def test_function_runs_uncompiled_after_the_compiler_failed(logs: Logs) -> None:
    compiled = Compiled("doubling", _double, _broken_backend)
    for size in (3, 4, 5):
        assert torch.equal(compiled(torch.ones(size)), torch.full((size,), 2.0))
    assert [record.getMessage().split()[1] for record in logs.errors] == ["doubling"]


def test_function_runs_uncompiled_beyond_the_limit_of_variants(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    def exceed_limit(values: Tensor) -> Tensor:
        raise FailOnRecompileLimitHit("recompile_limit reached")

    compiled = Compiled("doubling", _double, "eager")
    monkeypatch.setattr(compiled, "_compiled", exceed_limit)
    for size in (3, 4):
        assert torch.equal(compiled(torch.ones(size)), torch.full((size,), 2.0))
    assert len(logs.errors) == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("no such kernel")])
def test_errors_of_the_function_are_passed_on_and_it_stays_compiled(error: Exception, logs: Logs) -> None:
    compilations: list[int] = []
    errors = [error]

    def backend(graph: torch.fx.GraphModule, _: Sequence[Tensor]) -> Callable[..., Any]:
        compilations.append(1)

        def run(*inputs: Any) -> Any:
            if errors:
                raise errors.pop()
            return graph(*inputs)

        return run

    compiled = Compiled("doubling", _double, backend)
    with pytest.raises(type(error)):
        compiled(torch.ones(3))
    assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 2.0))
    torch.compiler.reset()
    compiled(torch.ones(3))
    assert len(compilations) == 2
    assert not logs.errors


def test_forward_of_a_network_is_compiled_in_place(logs: Logs) -> None:
    network = nn.Linear(4, 4).requires_grad_(False)
    inputs = torch.ones(2, 4)
    expected = network(inputs)
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Sequence[Tensor]) -> Callable[..., Any]:
        calls.append(1)
        return graph.forward

    compile_forward("a layer", network, backend)
    assert torch.equal(network(inputs), expected)
    assert calls
    assert not logs.errors


def test_options_are_passed_to_inductor_only(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, **arguments: options.append(arguments["options"]))
    Compiled("doubling", _double, options=CHANNELS_LAST)
    Compiled("doubling", _double)
    Compiled("doubling", _double, "eager", CHANNELS_LAST)
    assert options == [CHANNELS_LAST, None, None]


def test_inductor_has_the_options() -> None:
    assert CHANNELS_LAST.keys() | WHOLE_ROWS.keys() <= set(torch._inductor.list_options())


@pytest.mark.slow_compile
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_inductor_compiles_convolutions_once_for_all_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: Logs
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Upsample(scale_factor=2.0), nn.Conv2d(8, 3, 3))
    compiled = Compiled("the network", network.requires_grad_(False).forward, options=CHANNELS_LAST)
    graphs: list[int] = []
    for rows, columns in ((8, 8), (8, 12), (6, 4)):
        before = compiled_graphs()
        inputs = torch.randn(1, 4, rows, columns)
        expected, actual = network(inputs), compiled(inputs)
        assert (actual - expected).norm() <= 1e-4 * expected.norm()
        graphs.append(compiled_graphs() - before)
    assert not logs.errors, logs.text
    assert graphs == [1, 0, 0]


def test_equal_sizes_do_not_become_a_condition_in_a_thread_that_did_not_create_the_function() -> None:
    compiled = Compiled("a product", lambda matrix, vector: (matrix @ matrix.t()).sum() + vector.sum(), "eager")
    graphs: list[int] = []

    def run() -> None:
        for rows, columns in ((4, 4), (5, 3), (6, 2)):
            before = compiled_graphs()
            compiled(torch.ones(rows, columns), torch.ones(rows))
            graphs.append(compiled_graphs() - before)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert graphs == [1, 0, 0]
